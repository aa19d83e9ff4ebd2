-- wrk script: PUT of 256-byte values at random among KEYS keys (default 740000). The request is
-- put together by hand: wrk.format would take as much processor time as the server's front.
local keys = tonumber(os.getenv("KEYS") or "740000")
local head, tail
local thread_count = 0

function setup(thread)
  thread:set("seed", thread_count)
  thread_count = thread_count + 1
end

function init()
  math.randomseed(os.time() * 16 + seed)
  local value = ""
  for _ = 1, 256 do
    value = value .. string.char(math.random(32, 126))
  end
  head = "PUT /v1/kv/bench/"
  tail = " HTTP/1.1\r\nHost: " .. wrk.host .. "\r\nContent-Length: 256\r\n\r\n" .. value
end

function request()
  return head .. math.random(1, keys) .. tail
end
