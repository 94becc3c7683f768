-- worker: none of its slots takes a run any more; slots are called `worker/…`
local prefix = ARGV[1] .. '/'
for _, slots in ipairs({KEY.WORKERS, KEY.OCCUPIED, KEY.LINGERING}) do
  for _, slot in ipairs(redis.call('ZRANGE', slots, 0, -1)) do
    if slot == ARGV[1] or string.sub(slot, 1, #prefix) == prefix then
      redis.call('ZREM', slots, slot)
    end
  end
end
return 1
