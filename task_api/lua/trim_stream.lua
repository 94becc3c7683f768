-- stream, last entry looked at, limit, age_ms → the entry to go on after, or '' at the end
-- Removes entries of that age whose task was retired: no consumer has a use for them.
local stream, last, limit = ARGV[1], ARGV[2], tonumber(ARGV[3])
local entries = redis.call('XRANGE', stream, '(' .. last, digits(NOW - tonumber(ARGV[4])),
  'COUNT', limit)
for _, entry in ipairs(entries) do
  local fields = entry[2]
  for i = 1, #fields, 2 do
    if fields[i] == 'task_id' and redis.call('EXISTS', KEY.TASK .. fields[i + 1]) == 0 then
      redis.call('XDEL', stream, entry[1])
    end
  end
end
return #entries == limit and entries[#entries][1] or ''
