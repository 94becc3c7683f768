-- message_id, fingerprint, answer, number of tasks, then for each task: id, identity, spec,
-- deadline_ms, type, project_name, focus, metadata, problems, number of sources, and for each
-- source: type, sha256, its URLs (one JSON string a line).
-- → {'repeated', answer} or {'new', verdict of each task…}
local position = 0
local function take()
  position = position + 1
  return ARGV[position]
end

local function lines(text)
  local found = {}
  for line in string.gmatch(text, '[^\n]+') do
    found[#found + 1] = line
  end
  return found
end

local message = KEY.MESSAGE .. take()
local fingerprint, answer, number = take(), take(), tonumber(take())

local known = redis.call('HMGET', message, 'fingerprint', 'answer')
if known[1] == fingerprint then
  return {'repeated', known[2]}
end

local function take_task()
  local task = {id = take(), identity = take(), spec = take(), deadline_ms = take(), type = take(),
    project_name = take(), focus = take(), metadata = take(), problems = take(), sources = {}}
  for _ = 1, tonumber(take()) do
    task.sources[#task.sources + 1] = {type = take(), sha256 = take(), urls = take()}
  end
  return task
end

-- `before` is token and state of the refused task whose place it takes, or empty: a task that is
-- posted anew, corrected, goes on with its token. The first write here takes memory: a full Redis
-- refuses a script there, and only there.
local function record(task, before, state, event, code, text)
  local sequence = digits(redis.call('INCR', KEY.SEQUENCE))
  local types, fields = {}, {'spec', task.spec, 'identity', task.identity, 'sequence', sequence,
    'deadline_ms', task.deadline_ms, 'type', task.type, 'project_name', task.project_name,
    'focus', task.focus, 'metadata', task.metadata, 'accepted_ms', digits(NOW),
    'failures', '0'}
  local seen = {}
  for _, source in ipairs(task.sources) do
    if not seen[source.type] then
      seen[source.type] = true
      types[#types + 1] = source.type
      fields[#fields + 1] = 'sha256:' .. source.type
      fields[#fields + 1] = source.sha256
      fields[#fields + 1] = 'urls:' .. source.type
      fields[#fields + 1] = source.urls
    end
  end
  if before.state then
    redis.call('ZREM', KEY.INDEX .. before.state, task.id)
    redis.call('DEL', KEY.TASK .. task.id)
  end
  redis.call('HSET', KEY.TASK .. task.id, 'source_types', table.concat(types, ' '),
    'token', before.token or '0', unpack(fields))
  redis.call('PERSIST', KEY.SARIF .. task.id)
  move(task.id, 'new', state, {code = code, text = text}, event, {'code', code, 'text', text})
  if state == 'canceled' then
    publish(KEY.CANCELED, task.id)
  end
end

-- Fresh URLs go in front: a new signature heals one that has expired.
local function refresh_urls(task)
  local changed = false
  for _, source in ipairs(task.sources) do
    local field = 'urls:' .. source.type
    local old = redis.call('HGET', KEY.TASK .. task.id, field) or ''
    local merged, seen = {}, {}
    for _, url in ipairs(lines(source.urls .. '\n' .. old)) do
      if not seen[url] and #merged < KEY.MAX_URLS_PER_SOURCE then
        seen[url] = true
        merged[#merged + 1] = url
      end
    end
    local joined = table.concat(merged, '\n')
    if joined ~= old then
      redis.call('HSET', KEY.TASK .. task.id, field, joined)
      changed = true
    end
  end
  return changed
end

local function duplicate(task)
  local first = redis.call('HINCRBY', KEY.TASK .. task.id, 'duplicates', 1) == 1
  local refreshed = task.problems == '' and refresh_urls(task)
  if first or refreshed then
    emit(task.id, 'duplicate', {'text', refreshed and 'posted again with new URLs' or 'posted again'})
  end
end

local function conflict(task)
  -- One event for each other identity, however often it is sent.
  if redis.call('HSETNX', KEY.TASK .. task.id, 'conflict:' .. task.identity, '1') == 1 then
    emit(task.id, 'conflict', {'code', 'identity_conflict',
      'text', 'posted with this task_id but another type, project, focus, deadline or digest'})
  end
end

local verdicts, waiting_refusals, some_accepted, last_deadline = {'new'}, {}, false, NOW
for place = 1, number do
  local task = take_task()
  local found = read(task.id, 'identity', 'refused', 'token', 'state')
  local before = {token = found[3], state = found[4]}
  local verdict
  if found[1] and not found[2] then
    if found[1] == task.identity then
      duplicate(task)
      verdict = 'duplicate'
    else
      conflict(task)
      verdict = 'conflict'
    end
  elseif task.problems ~= '' then
    waiting_refusals[#waiting_refusals + 1] = task
    verdict = 'refused'
  elseif redis.call('EXISTS', KEY.CANCELED_AHEAD .. task.id) == 1 then
    record(task, before, 'canceled', 'canceled', 'canceled', 'its cancel came before it')
    redis.call('DEL', KEY.CANCELED_AHEAD .. task.id)
    verdict = 'canceled'
  else
    record(task, before, 'pending', 'accepted', '', '')
    verdict = 'accepted'
  end
  some_accepted = some_accepted or verdict == 'accepted' or verdict == 'duplicate'
    or verdict == 'canceled'
  last_deadline = math.max(last_deadline, math.min(tonumber(task.deadline_ms), NOW + 366 * 86400000))
  verdicts[#verdicts + 1] = verdict
end

if some_accepted or number == 0 then
  for _, task in ipairs(waiting_refusals) do
    if not redis.call('HGET', KEY.TASK .. task.id, 'identity') then
      record(task, {}, 'errored', 'errored', 'refused', task.problems)
      redis.call('HSET', KEY.TASK .. task.id, 'refused', '1')
    end
  end
  redis.call('HSET', message, 'fingerprint', fingerprint, 'answer', answer)
  redis.call('PEXPIREAT', message, digits(last_deadline + KEY.MESSAGE_MEMORY_MS))
end
return verdicts
