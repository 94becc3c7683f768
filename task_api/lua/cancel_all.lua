-- request id, last sequence number, limit, code, text → how many were cancelled
-- All live states at once: a task that goes from one to another is in one of them at every moment,
-- so 0 says that none is left.
local request, last, limit = ARGV[1], ARGV[2], tonumber(ARGV[3])
local known = remembered(request)
if known then
  return known
end
local number = 0
for state in pairs(LIVE) do
  local ids = redis.call('ZRANGEBYSCORE', KEY.INDEX .. state, '-inf', last,
    'LIMIT', 0, limit - number)
  for _, id in ipairs(ids) do
    finish(id, state, 'canceled', ARGV[4], ARGV[5])
  end
  number = number + #ids
end
return remember(request, number)
