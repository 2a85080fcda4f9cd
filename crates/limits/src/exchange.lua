-- One call of a gateway for one tenant, or a gateway's sign of life. Repeats `src/book.rs` line by line; a test plays the
-- same calls to both. KEYS: exchange: the tenant's buckets, its charges; beat: the set of gateways, an epoch.
-- ARGV: the operation, the time in microseconds or '' for the server's, then the call as JSON, or gateway,
-- lifetime and what to call a new epoch.
local now = tonumber(ARGV[2])
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000000 + tonumber(time[2])
end
local function text(number) return string.format('%.17g', number) end

if ARGV[1] == 'beat' then
  local alive_us = tonumber(ARGV[4])
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', text(now))
  redis.call('ZADD', KEYS[1], text(now + alive_us), ARGV[3])
  redis.call('PEXPIRE', KEYS[1], math.ceil(alive_us / 1000))
  local fresh = redis.call('SET', KEYS[2], ARGV[5], 'NX')
  -- Another one after a restart or a fail-over. Who may not ask for it is told nothing.
  local info = redis.pcall('INFO', 'server')
  local server = type(info) == 'string' and string.match(info, 'run_id:(%w+)') or ''
  return {text(redis.call('ZCARD', KEYS[1])), fresh and ARGV[5] or redis.call('GET', KEYS[2]), server}
end

local BUCKETS_MAX, CHARGES_MAX, KEEP_MS = 4096, 4096, 172800000
local call = cjson.decode(ARGV[3])
local buckets_key, charges_key = KEYS[1], KEYS[2]

-- Charges that are known; those that ended hold nothing, and go when their time is over.
local charges, count = {}, 0
local flat = redis.call('HGETALL', charges_key)
for i = 1, #flat, 2 do
  local charge = cmsgpack.unpack(flat[i + 1])
  -- Gateways of before this was kept may still run beside us.
  if (charge.known_until_us or charge.until_us) > now then
    if charge.until_us <= now and next(charge.holds) then
      charge.holds = {}
      redis.call('HSET', charges_key, flat[i], cmsgpack.pack(charge))
    end
    charges[flat[i]] = charge
    count = count + 1
  else
    redis.call('HDEL', charges_key, flat[i])
  end
end
if charges[call.charge] then return charges[call.charge].answer end

-- A bucket is kept as 'used at limit period alone'.
local function read(stored)
  local used, at, limit, period, alone = string.match(stored, '^(%S+) (%S+) (%S+) (%S+) (%S+)$')
  return tonumber(used), tonumber(at), tonumber(limit), tonumber(period), tonumber(alone)
end
local function drained(used, at, limit, period)
  local elapsed = math.max(now - at, 0)
  return math.min(math.max(used - elapsed * (limit / period), 0), 2 * limit)
end
local function used_of(name, limit, period)
  local stored = redis.call('HGET', buckets_key, 'b:' .. name)
  if not stored then return 0, 0 end
  local used, at, _, _, alone = read(stored)
  used = drained(used, at, limit, period)
  return used, math.min(alone, used)
end
local function write(name, limit, period, used, alone)
  local kept = {text(used), text(now), text(limit), text(period), text(alone)}
  redis.call('HSET', buckets_key, 'b:' .. name, table.concat(kept, ' '))
end

-- What the gateway was last answered is not here: this is another book than the one that it knew, or an older state of
-- it. Where it is here, everything that the gateway saw is.
local epoch = redis.call('HGET', buckets_key, 'epoch')
local knows_another = call.epoch ~= epoch or (call.closes ~= cjson.null and not charges[call.closes])
if call.epoch ~= '' and knows_another then
  if call.floors == cjson.null then return {epoch or '', 'unknown_epoch', '0', '0'} end
  for _, floor in ipairs(call.floors) do
    local remembered = drained(floor.used, floor.at_us, floor.limit, floor.period_us)
    local used, alone = used_of(floor.bucket, floor.limit, floor.period_us)
    write(floor.bucket, floor.limit, floor.period_us, math.max(used - alone, remembered) + alone, alone)
  end
end
local closed = nil
if call.closes ~= cjson.null and charges[call.closes] then
  closed = charges[call.closes]
  charges[call.closes] = nil
  count = count - 1
  redis.call('HDEL', charges_key, call.closes)
end
if count >= CHARGES_MAX then
  for id, charge in pairs(charges) do
    if charge.until_us <= now then
      charges[id] = nil
      count = count - 1
      redis.call('HDEL', charges_key, id)
    end
  end
end
if count >= CHARGES_MAX then return {epoch or '', 'full', '0', '0'} end
if not epoch then
  epoch = call.new_epoch
  redis.call('HSET', buckets_key, 'epoch', epoch)
end

-- What each ask could get, and the longest wait among those that get too little.
local weighed, refused, longest = {}, nil, 0
for index, ask in ipairs(call.asks) do
  local granted, level, wait
  if ask.units then
    local units = ask.units
    level = used_of(units.bucket, units.limit, units.period_us)
    if closed or units.back < 0 then level = math.max(level - units.back, 0) end
    level = math.max(level, math.min(level + units.alone, units.limit))
    granted = math.min(units.at_most, math.floor(math.max(units.limit - level, 0)))
    if granted < units.at_least then
      local excess = level + units.at_least - units.limit
      wait = excess <= 0 and 0 or math.ceil(excess / (units.limit / units.period_us))
    end
  else
    local slots, others = ask.slots, 0
    for _, charge in pairs(charges) do others = others + (charge.holds[slots.bucket] or 0) end
    granted = math.max(math.min(math.max(slots.limit - others, 0), slots.at_most), slots.used)
    level = others + granted
    if granted < slots.at_least then wait = 0 end
  end
  if wait and (not refused or wait > longest) then refused, longest = index, wait end
  weighed[index] = {granted, level}
end

local holds = closed and closed.holds or {}
local answer = {epoch, refused and 'refused' or 'granted', text(refused and refused - 1 or 0), text(longest)}
for index, ask in ipairs(call.asks) do
  local granted, level = weighed[index][1], weighed[index][2]
  if ask.units then
    if refused then granted = 0 end
    level = level + granted
    local _, before = used_of(ask.units.bucket, ask.units.limit, ask.units.period_us)
    local alone = math.min(before + ask.units.alone, level)
    write(ask.units.bucket, ask.units.limit, ask.units.period_us, level, alone)
  else
    if refused then
      level = level - (granted - ask.slots.used)
      granted = ask.slots.used
    end
    holds[ask.slots.bucket] = granted > 0 and granted or nil
  end
  answer[#answer + 1] = text(granted)
  answer[#answer + 1] = text(level)
  answer[#answer + 1] = text(now)
end

local record = {until_us = now + call.open_us, known_until_us = now + call.known_us, holds = holds, answer = answer}
redis.call('HSET', charges_key, call.charge, cmsgpack.pack(record))
redis.call('PEXPIRE', charges_key, KEEP_MS)
redis.call('PEXPIRE', buckets_key, KEEP_MS)
if redis.call('HLEN', buckets_key) > BUCKETS_MAX then
  local all = redis.call('HGETALL', buckets_key)
  for i = 1, #all, 2 do
    if all[i] ~= 'epoch' then
      local used, at, limit, period = read(all[i + 1])
      if drained(used, at, limit, period) == 0 then redis.call('HDEL', buckets_key, all[i]) end
    end
  end
end
return answer
