-- wrk script: GET at random among KEYS keys (default 740000); QUERY is put behind, for example
-- "?consistency=serializable". Put together by hand, as in put.lua.
local keys = tonumber(os.getenv("KEYS") or "740000")
local head, tail
local thread_count = 0

function setup(thread)
  thread:set("seed", thread_count)
  thread_count = thread_count + 1
end

function init()
  math.randomseed(os.time() * 16 + seed)
  head = "GET /v1/kv/bench/"
  tail = (os.getenv("QUERY") or "") .. " HTTP/1.1\r\nHost: " .. wrk.host .. "\r\n\r\n"
end

function request()
  return head .. math.random(1, keys) .. tail
end
