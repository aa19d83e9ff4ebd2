-- wrk script: GET at random among KEYS keys (default 740000); QUERY is put behind, for example
-- "?consistency=serializable".
local keys = tonumber(os.getenv("KEYS") or "740000")
local query = os.getenv("QUERY") or ""
local thread_count = 0

function setup(thread)
  thread:set("seed", thread_count)
  thread_count = thread_count + 1
end

function init()
  math.randomseed(os.time() * 16 + seed)
end

function request()
  return wrk.format("GET", "/v1/kv/bench/" .. math.random(1, keys) .. query)
end
