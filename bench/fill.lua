-- wrk script for one thread: PUT of 256-byte values under bench/1, bench/2, ... from FROM on, each
-- key once, however many connections there are.
local at = tonumber(os.getenv("FROM") or "1") - 1
local tail

function init()
  math.randomseed(os.time())
  local value = ""
  for _ = 1, 256 do
    value = value .. string.char(math.random(32, 126))
  end
  tail = " HTTP/1.1\r\nHost: " .. wrk.host .. "\r\nContent-Length: 256\r\n\r\n" .. value
end

function request()
  at = at + 1
  return "PUT /v1/kv/bench/" .. at .. tail
end
