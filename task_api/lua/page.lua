-- highest sequence number ('+inf', or '(n' for below n), limit, states…
-- → {{task_id, sequence number, {name, value, …}}, …}, newest first
local highest, limit = ARGV[1], tonumber(ARGV[2])
local rows = {}
for i = 3, #ARGV do
  local found = redis.call('ZREVRANGEBYSCORE', KEY.INDEX .. ARGV[i], highest, '-inf', 'WITHSCORES',
    'LIMIT', 0, limit)
  for j = 1, #found, 2 do
    rows[#rows + 1] = {id = found[j], sequence = tonumber(found[j + 1])}
  end
end
table.sort(rows, function(one, other) return one.sequence > other.sequence end)
local page = {}
for i = 1, math.min(limit, #rows) do
  page[i] = {rows[i].id, rows[i].sequence, redis.call('HGETALL', KEY.TASK .. rows[i].id)}
end
return page
