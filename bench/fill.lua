-- wrk script for one thread: PUT of 256-byte values under bench/1, bench/2, ... from FROM on, each key
-- once, however many connections there are.
local at = tonumber(os.getenv("FROM") or "1") - 1
local value = ""

function init()
  math.randomseed(os.time())
  for _ = 1, 256 do
    value = value .. string.char(math.random(32, 126))
  end
end

function request()
  at = at + 1
  return wrk.format("PUT", "/v1/kv/bench/" .. at, nil, value)
end
