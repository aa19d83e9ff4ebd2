-- wrk script: PUT of 256-byte values at random among KEYS keys (default 740000).
local keys = tonumber(os.getenv("KEYS") or "740000")
local value = ""
local thread_count = 0

function setup(thread)
  thread:set("seed", thread_count)
  thread_count = thread_count + 1
end

function init()
  math.randomseed(os.time() * 16 + seed)
  for _ = 1, 256 do
    value = value .. string.char(math.random(32, 126))
  end
end

function request()
  return wrk.format("PUT", "/v1/kv/bench/" .. math.random(1, keys), nil, value)
end
