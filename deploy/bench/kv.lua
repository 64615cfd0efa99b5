-- One worker of the benchmark: PUT or GET of 256-byte values over a fixed set of keys, through wrk.
-- Arguments: token, mount, "put" or "get", number of keys. Prints one line of JSON at the end.

local token, mount, operation, keys
local body = '{"value":"' .. string.rep("x", 256) .. '"}'
local n = 0

function init(args)
  token, mount, operation, keys = args[1], args[2], args[3], tonumber(args[4])
  wrk.headers["X-Vault-Token"] = token
  -- The workers of one run start at different keys, or they would all write the same one.
  math.randomseed(os.time() + tonumber(tostring({}):sub(8)) % 100000)
  n = math.random(keys)
end

function request()
  n = n % keys + 1
  local path = string.format("/v1/%s/key-%05d", mount, n)
  if operation == "put" then
    return wrk.format("PUT", path, nil, body)
  end
  return wrk.format("GET", path)
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '\nRESULT {"requests":%d,"microseconds":%d,"failed":%d,"p50_us":%d,"p99_us":%d}\n',
    summary.requests, summary.duration, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(99)))
end
