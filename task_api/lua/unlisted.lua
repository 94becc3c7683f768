-- states that are not live… → how many tasks ended before anybody listed when they did
local number = -redis.call('ZCARD', KEY.ENDED)
for _, state in ipairs(ARGV) do
  number = number + redis.call('ZCARD', KEY.INDEX .. state)
end
return number
