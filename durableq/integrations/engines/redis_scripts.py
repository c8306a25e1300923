"""What the queue asks of Redis, as scripts: each is one step for everybody, whenever its client dies.

    KEYS  1 the stream, 2 the sorted set of what is delayed, 3 the hash of options, 4 the stream of dead letters
    ARGV  1 the group, 2 this consumer, then as each script says

Whoever takes an entry is a consumer of the group, and the entry stays with it (in the group's pending list, with a count of
deliveries and the time since the last sign of life) until it is acked: removed from the list and from the stream. The
consumer `-` stands for nobody: what it has was given back and comes first. A delivery is ours as long as the list
has the entry under our name with our count.
"""

_COMMON = """
local stream, delayed, options, dead = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local group, me, nobody = ARGV[1], ARGV[2], '-'

local function now()
    local time = redis.call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function option(name)
    return tonumber(redis.call('HGET', options, name) or 0)
end

local function ours(id, count)
    local found = redis.call('XPENDING', stream, group, id, id, 1, me)[1]
    return found and tonumber(found[4]) == tonumber(count)
end

local function waiting()
    local pending = redis.call('XPENDING', stream, group)
    local lent = pending[1]
    for _, consumer in ipairs(pending[4] or {}) do
        if consumer[1] == nobody then lent = lent - consumer[2] end
    end
    return redis.call('XLEN', stream) + redis.call('ZCARD', delayed) - lent
end

local function remove(id)
    redis.call('XACK', stream, group, id)
    redis.call('XDEL', stream, id)
end

local function fields_of(id)
    local found = redis.call('XRANGE', stream, id, id)[1]
    return found and found[2]
end

-- The fields of an entry that leaves its place: with its name, and with the deliveries that it has had.
local function moved(id, fields, count)
    local out, named = {}, false
    for i = 1, #fields, 2 do
        if fields[i] == 'id' then named = true end
        if fields[i] ~= 'n' then
            out[#out + 1] = fields[i]
            out[#out + 1] = fields[i + 1]
        end
    end
    if not named then
        out[#out + 1] = 'id'
        out[#out + 1] = id
    end
    if count > 0 then
        out[#out + 1] = 'n'
        out[#out + 1] = count
    end
    return out
end

-- The deliveries that an entry had before it was moved: not what somebody else has put under that name.
local function earlier(fields)
    for i = 1, #fields, 2 do
        if fields[i] == 'n' and #fields[i + 1] < 10 and string.match(fields[i + 1], '^%d+$') then
            return tonumber(fields[i + 1])
        end
    end
    return 0
end

local function bury(id, fields)
    redis.call('XADD', dead, '*', unpack(moved(id, fields, 0)))
    remove(id)
end
"""

APPEND = (
    _COMMON
    + """
-- 3 milliseconds of delay, then of each item the payload, the serializer's tag, the microseconds of its put, and its id or ''
-- returns how many there was room for
local delay, count, most = tonumber(ARGV[3]), 0, option('maxsize')
local room = most > 0 and most - waiting() or math.huge
for i = 4, #ARGV, 4 do
    if count >= room then break end
    local fields = {'value', ARGV[i], 'tag', ARGV[i + 1], 'at', ARGV[i + 2]}
    if ARGV[i + 3] ~= '' then
        fields[7], fields[8] = 'id', ARGV[i + 3]
    end
    if delay > 0 then
        local serial = redis.call('HINCRBY', options, 'serial', 1)
        fields = moved('d' .. now() .. '-' .. serial, fields, 0)
        redis.call('ZADD', delayed, now() + delay, cmsgpack.pack(fields))
    else
        redis.call('XADD', stream, '*', unpack(fields))
    end
    count = count + 1
end
return count
"""
)

TAKE = (
    _COMMON
    + """
-- 3 how many, 4 milliseconds of silence after which an entry is anybody's, 5 where to look for such ('' not now), 6 for good?
-- returns where to look next, {id, count, deliveries, fields} of each, and milliseconds to the first that is delayed, or -1
local limit, silence, cursor, done = tonumber(ARGV[3]), ARGV[4], ARGV[5], ARGV[6] == '1'
local most, taken = option('max_deliveries'), {}

for _, packed in ipairs(redis.call('ZRANGEBYSCORE', delayed, '-inf', now(), 'LIMIT', 0, 100)) do
    redis.call('XADD', stream, '*', unpack(cmsgpack.unpack(packed)))
    redis.call('ZREM', delayed, packed)
end

local function take(id, fields)
    local count = tonumber(redis.call('XPENDING', stream, group, id, id, 1)[1][4])
    local all = count + earlier(fields)
    if most > 0 and all > most then
        bury(id, fields)
    else
        taken[#taken + 1] = {id, count, all, fields}
        if done then remove(id) end
    end
end

local function take_claimed(entries)
    for _, entry in ipairs(entries) do
        if entry and entry[2] then take(entry[1], entry[2]) end
    end
end

while #taken < limit do
    local ids = {}
    for _, found in ipairs(redis.call('XPENDING', stream, group, '-', '+', limit - #taken, nobody)) do
        ids[#ids + 1] = found[1]
    end
    if #ids == 0 then break end
    local claimed = redis.call('XCLAIM', stream, group, me, 0, unpack(ids))
    take_claimed(claimed)
    if #claimed < #ids then  -- somebody has deleted entries under our hands
        for _, id in ipairs(ids) do
            if not fields_of(id) then redis.call('XACK', stream, group, id) end
        end
    end
end
if cursor ~= '' and #taken < limit then
    local found = redis.call('XAUTOCLAIM', stream, group, me, silence, cursor, 'COUNT', limit - #taken)
    cursor = found[1]
    take_claimed(found[2])
end
if #taken < limit then
    local found = redis.call('XREADGROUP', 'GROUP', group, me, 'COUNT', limit - #taken, 'STREAMS', stream, '>')
    if found then
        for _, entry in ipairs(found[1][2]) do take(entry[1], entry[2]) end
    end
end
local first = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')[2]
return {cursor, taken, first and math.max(0, math.ceil(first - now())) or -1}
"""
)

ACK = (
    _COMMON
    + """
-- 3 id, 4 count; whether it was ours
if not ours(ARGV[3], ARGV[4]) then return 0 end
remove(ARGV[3])
return 1
"""
)

GIVE_BACK = (
    _COMMON
    + """
-- 3 id, 4 count, 5 milliseconds of delay, 6 does the delivery count?; whether it was ours
local id, count, delay, counts = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6] == '1'
if not ours(id, count) then return 0 end
local fields = fields_of(id)
if not fields then
    redis.call('XACK', stream, group, id)
    return 0
end
local most = option('max_deliveries')
if counts and most > 0 and count + earlier(fields) >= most then
    bury(id, fields)
elseif delay > 0 then
    redis.call('ZADD', delayed, now() + delay, cmsgpack.pack(moved(id, fields, count + earlier(fields))))
    remove(id)
else
    redis.call('XCLAIM', stream, group, nobody, 0, id, 'RETRYCOUNT', counts and count or count - 1, 'JUSTID')
end
return 1
"""
)

REJECT = (
    _COMMON
    + """
-- 3 id, 4 count; whether it was ours
if not ours(ARGV[3], ARGV[4]) then return 0 end
local fields = fields_of(ARGV[3])
if fields then bury(ARGV[3], fields) end
return fields and 1 or 0
"""
)

KEEP = (
    _COMMON
    + """
-- 3 on: id, count and milliseconds of silence to count from, of each; how many were ours
local kept = 0
for i = 3, #ARGV, 3 do
    if ours(ARGV[i], ARGV[i + 1]) then
        redis.call('XCLAIM', stream, group, me, 0, ARGV[i], 'IDLE', ARGV[i + 2], 'JUSTID')
        kept = kept + 1
    end
end
return kept
"""
)

COUNTS = (
    _COMMON
    + """
return {waiting(), redis.call('XLEN', stream) + redis.call('ZCARD', delayed)}
"""
)

PEEK = (
    _COMMON
    + """
-- 3 how many; {id, deliveries, fields} of each
local limit, seen = tonumber(ARGV[3]), {}
for _, found in ipairs(redis.call('XPENDING', stream, group, '-', '+', limit, nobody)) do
    local fields = fields_of(found[1])
    if fields then seen[#seen + 1] = {found[1], found[4], found[4] + earlier(fields), fields} end
end
if #seen < limit then
    local last = '-'
    for _, found in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
        if found[2] == group then last = '(' .. found[8] end
    end
    for _, entry in ipairs(redis.call('XRANGE', stream, last, '+', 'COUNT', limit - #seen)) do
        seen[#seen + 1] = {entry[1], 0, earlier(entry[2]), entry[2]}
    end
end
return seen
"""
)

PURGE = (
    _COMMON
    + """
-- how many
local count = redis.call('ZCARD', delayed)
redis.call('DEL', delayed)
while true do
    local found = redis.call('XPENDING', stream, group, '-', '+', 1000, nobody)
    if #found == 0 then break end
    for _, entry in ipairs(found) do remove(entry[1]) end
    count = count + #found
end
while true do
    local found = redis.call('XREADGROUP', 'GROUP', group, nobody, 'COUNT', 1000, 'STREAMS', stream, '>')
    if not found then break end
    for _, entry in ipairs(found[1][2]) do remove(entry[1]) end
    count = count + #found[1][2]
end
return count
"""
)

LEAVE = (
    _COMMON
    + """
-- Give back what this consumer has, and forget it; and others that have nothing and were silent for an hour.
while true do
    local found = redis.call('XPENDING', stream, group, '-', '+', 1000, me)
    if #found == 0 then break end
    for _, entry in ipairs(found) do
        redis.call('XCLAIM', stream, group, nobody, 0, entry[1], 'JUSTID')
    end
end
redis.call('XGROUP', 'DELCONSUMER', stream, group, me)
for _, found in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
    if found[4] == 0 and found[6] > 3600000 then redis.call('XGROUP', 'DELCONSUMER', stream, group, found[2]) end
end
return 1
"""
)
