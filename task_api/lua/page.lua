-- highest sequence number ('+inf', or '(n' for below n), limit, states…
-- → {{task_id, sequence number, fields}, …}, newest first. The fields are JSON, [name, value, …]: one
-- string is read many times faster than a reply for each of them.
local highest, limit = ARGV[1], tonumber(ARGV[2])

-- Of each state no more is read at a time than its share, so that a page costs the same however
-- many tasks each of them has.
local portion = math.max(4, math.ceil(limit / (#ARGV - 2)))

local function read_on(list)
  list.rows = redis.call('ZREVRANGEBYSCORE', list.index, list.highest, '-inf', 'WITHSCORES',
    'LIMIT', 0, portion)
  list.place = 1
  list.next = tonumber(list.rows[2])
end

local function step(list)
  list.place = list.place + 2
  list.next = tonumber(list.rows[list.place + 1])
  if not list.next and #list.rows == 2 * portion then
    list.highest = '(' .. list.rows[#list.rows]
    read_on(list)
  end
end

local lists = {}
for i = 3, #ARGV do
  lists[i - 2] = {index = KEY.INDEX .. ARGV[i], highest = highest}
  read_on(lists[i - 2])
end

local page = {}
while #page < limit do
  local newest
  for _, list in ipairs(lists) do
    if list.next and (not newest or list.next > newest.next) then
      newest = list
    end
  end
  if not newest then
    break
  end
  local task_id = newest.rows[newest.place]
  page[#page + 1] = {task_id, newest.next,
    cjson.encode(redis.call('HGETALL', KEY.TASK .. task_id))}
  step(newest)
end
return page
