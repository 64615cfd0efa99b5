-- One worker of the benchmark: PUT or GET over a fixed set of keys, through wrk.
-- Arguments: token, mount, "fill", "put" or "get", number of keys, bytes of a value, keys filled so far. "fill" writes the
-- keys in order behind those. Prints one line of JSON at the end.

-- Keys up to this number have their requests made once, at the start: the load and the servers share this machine.
local MADE = 10000

local token, mount, operation, keys, body
local made = {}
local n = 0
local threads = 0

function setup(thread)
  thread:set("number", threads)
  threads = threads + 1
end

function init(args)
  token, mount, operation, keys = args[1], args[2], args[3], tonumber(args[4])
  body = '{"value":"' .. string.rep("x", tonumber(args[5])) .. '"}'
  wrk.headers["X-Vault-Token"] = token
  math.randomseed(os.time() + number * 7919)
  -- The workers of one run start at different keys, or they would all write the same one.
  n = operation == "fill" and tonumber(args[6]) or math.random(keys)
end

local function make(key)
  local path = string.format("/v1/%s/key-%07d", mount, key)
  if operation == "get" then
    return wrk.format("GET", path)
  end
  return wrk.format("PUT", path, nil, body)
end

function request()
  n = n % keys + 1
  local one = made[n]
  if not one then
    one = make(n)
    if n <= MADE then
      made[n] = one
    end
  end
  return one
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '\nRESULT {"requests":%d,"microseconds":%d,"failed":%d,"p50_us":%d,"p99_us":%d}\n',
    summary.requests, summary.duration, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(99)))
end
