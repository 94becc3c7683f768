-- slot: it takes no more runs
for _, slots in ipairs({KEY.WORKERS, KEY.OCCUPIED, KEY.LINGERING}) do
  redis.call('ZREM', slots, ARGV[1])
end
return 1
