-- highest sequence number ('+inf', or '(n' for below n), limit, states…
-- → {{task_id, sequence number, fields}, …}, newest first. The fields are JSON, [name, value, …]: one
-- string is read many times faster than a reply for each of them.
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
  page[i] = {rows[i].id, rows[i].sequence, cjson.encode(redis.call('HGETALL', KEY.TASK .. rows[i].id))}
end
return page
