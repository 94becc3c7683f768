-- state, last sequence number, limit, code, text → how many were cancelled
local ids = redis.call('ZRANGEBYSCORE', KEY.INDEX .. ARGV[1], '-inf', ARGV[2], 'LIMIT', 0, ARGV[3])
for _, id in ipairs(ids) do
  finish(id, ARGV[1], 'canceled', ARGV[4], ARGV[5])
end
return #ids
