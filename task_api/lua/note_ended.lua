-- state, last sequence number, limit → the sequence number to go on after, or '' at the end
-- Lists tasks that had ended before anybody listed them by when they ended.
local state, last, limit = ARGV[1], ARGV[2], tonumber(ARGV[3])
local found = redis.call('ZRANGEBYSCORE', KEY.INDEX .. state, '(' .. last, '+inf', 'WITHSCORES',
  'LIMIT', 0, limit)
for i = 1, #found, 2 do
  local ended = redis.call('HGET', KEY.TASK .. found[i], 'updated_ms')
  redis.call('ZADD', KEY.ENDED, 'NX', ended or digits(NOW), found[i])
end
return #found == 2 * limit and found[#found] or ''
