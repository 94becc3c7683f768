-- states… → {size of each index, counters, {waiting, due, workers, occupied,
-- lingering, now}, sensor}; its cost does not grow with the number of tasks
local sizes = {}
for _, state in ipairs(ARGV) do
  sizes[#sizes + 1] = redis.call('ZCARD', KEY.INDEX .. state)
end
return {sizes, redis.call('HGETALL', KEY.COUNTERS),
  {redis.call('SCARD', KEY.WAITING), redis.call('ZCOUNT', KEY.DUE, '-inf', digits(NOW)),
   living(KEY.WORKERS), living(KEY.OCCUPIED), living(KEY.LINGERING), digits(NOW)}, redis.call('HGETALL', KEY.SENSOR)}
