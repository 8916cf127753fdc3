-- The part of the library that is written in Lua: wrappers that charge for work without instructions, keep limits
-- from being caught, and let a handler wait. What they close over is out of the reach of objects.
local raw, host = ...
local type, select, string, table, math = raw.type, raw.select, raw.string, raw.table, raw.math
local yield, isyieldable = raw.coroutine.yield, raw.coroutine.isyieldable
local raw_pcall, raw_xpcall, raw_sort, rawequal, error = raw.pcall, raw.xpcall, table.sort, raw.rawequal, raw.error

-- Luau takes positions and counts for 32 bits, whatever is beyond wraps around. No string and no table is so long: a
-- greater number means the same as the greatest, and NaN means nothing.
local FAR = 2147483646
local raw_tonumber, raw_select = raw.tonumber, raw.select
local function fit(n, where)
  if type(n) == "string" then
    n = raw_tonumber(n) or n
  end
  if type(n) == "number" then
    if n ~= n then
      error("invalid argument to '" .. where .. "' (a number expected, got NaN)", 3)
    elseif n > FAR then
      return FAR
    elseif n < -FAR then
      return -FAR
    end
  end
  return n
end

-- Where a number beyond would be another place.
local function exact(n, where)
  local near = fit(n, where)
  if type(near) == "number" and near ~= (raw_tonumber(n) or n) then
    error("invalid argument to '" .. where .. "' (position out of range)", 3)
  end
  return near
end

do
  local rep, sub, byte, char = string.rep, string.sub, string.byte, string.char
  function string.rep(s, n)
    return rep(s, fit(n, "rep"))
  end
  function string.sub(s, i, j)
    return sub(s, fit(i, "sub"), fit(j, "sub"))
  end
  function string.byte(s, i, j)
    return byte(s, fit(i, "byte"), fit(j, "byte"))
  end
  function string.char(...)
    for _, code in { ... } do
      fit(code, "char")
      if type(code) == "number" and (code >= 256 or code < 0) then
        error("invalid argument to 'char' (value out of range)", 2)
      end
    end
    return char(...)
  end

  local concat, insert, remove, move = table.concat, table.insert, table.remove, table.move
  local unpack, create, table_find = table.unpack, table.create, table.find
  function table.concat(t, separator, i, j)
    return concat(t, separator, fit(i, "concat"), fit(j, "concat"))
  end
  function table.insert(t, ...)
    if raw_select("#", ...) == 2 then
      local at, value = ...
      return insert(t, exact(at, "insert"), value)
    end
    return insert(t, ...)
  end
  function table.remove(t, at)
    return remove(t, fit(at, "remove"))
  end
  function table.move(from, first, last, at, to)
    return move(from, exact(first, "move"), exact(last, "move"), exact(at, "move"), to)
  end
  function table.unpack(t, i, j)
    return unpack(t, fit(i, "unpack"), fit(j, "unpack"))
  end
  raw.unpack = table.unpack
  function table.create(n, value)
    return create(fit(n, "create"), value)
  end
  function table.find(t, value, from)
    return table_find(t, value, fit(from, "find"))
  end

  function raw.select(n, ...)
    if type(n) == "number" then
      n = fit(n, "select")
    end
    return raw_select(n, ...)
  end
  function raw.tonumber(value, ...)
    if raw_select("#", ...) == 0 then
      return raw_tonumber(value)
    end
    return raw_tonumber(value, fit((...), "tonumber"))
  end
  local ldexp = math.ldexp
  function math.ldexp(x, exponent)
    return ldexp(x, fit(exponent, "ldexp"))
  end
end

local function kept(ok, ...)
  if not ok then
    return false, host.caught((...))
  end
  return true, ...
end

function raw.pcall(f, ...)
  return kept(raw_pcall(f, ...))
end

function raw.xpcall(f, handler, ...)
  return kept(raw_xpcall(f, handler, ...))
end

-- Addresses differ from run to run, and are nobody's business.
local raw_tostring, match, find, format, unpack = raw.tostring, string.match, string.find, string.format, raw.unpack
local function tostring(value)
  local text, kind = raw_tostring(value), type(value)
  if (kind == "table" or kind == "function") and match(text, "^%a+: 0x%x+$") then
    return kind
  end
  return text
end
raw.tostring = tostring

-- Whole numbers have 64 bits, characters 8: what is beyond is no other number.
local gmatch = string.gmatch
local function check_format(text, values)
  local at = 0
  for kind in gmatch(text, "%%[%-%+ #%d%.]*(.)") do
    if kind ~= "%" then
      at += 1
      local value = values[at]
      local is_whole = kind == "d" or kind == "i" or kind == "o" or kind == "u" or kind == "x" or kind == "X"
      local is_far = type(value) == "number" and not (value >= -2 ^ 63 and value < 2 ^ 63)
      local is_long = type(value) == "number" and not (value >= 0 and value < 256)
      if is_whole and is_far or kind == "c" and is_long then
        error("invalid argument #" .. at + 1 .. " to 'format' (the number is out of range of %" .. kind .. ")", 3)
      end
    end
  end
end

-- Only %* shows tables; it is also what `{x}` in a string becomes.
function string.format(text, ...)
  for _, value in { ... } do
    if type(value) == "number" and not (value > -2 ^ 31 and value < 2 ^ 31) then
      check_format(text, { ... })
      break
    end
  end
  if type(text) == "string" and find(text, "%*", 1, true) then
    local count, shown = select("#", ...), { ... }
    for at = 1, count do
      local kind = type(shown[at])
      if kind == "table" or kind == "function" or kind == "userdata" then
        shown[at] = tostring(shown[at])
      end
    end
    return format(text, unpack(shown, 1, count))
  end
  return format(text, ...)
end

-- A pattern may be tried at each byte, and a set in it read for each byte.
local place = { find = 1, match = 1, gsub = 2 }
for _, name in raw.ipairs({ "find", "match", "gmatch", "gsub", "split" }) do
  local original, number_at = string[name], place[name]
  string[name] = function(s, p, ...)
    if type(s) == "string" and type(p) == "string" then
      local cost = #s * #p / 64
      if cost > 1 then
        host.charge(cost)
      end
    end
    if number_at == 1 and raw_select("#", ...) > 0 then
      local init, plain = ...
      return original(s, p, fit(init, name), plain)
    elseif number_at == 2 and raw_select("#", ...) > 1 then
      local replacement, count = ...
      return original(s, p, replacement, fit(count, name))
    end
    return original(s, p, ...)
  end
end

function table.sort(t, less)
  if less == nil then
    host.charge_sort(t)
  end
  return raw_sort(t, less)
end

-- Numbers from the seed of the call, with the arguments of the original.
local floor = math.floor
function math.random(low, high)
  if low == nil then
    return host.random()
  end
  if high == nil then
    low, high = 1, low
  end
  low, high = floor(low), floor(high)
  if not (low >= -2 ^ 53 and high <= 2 ^ 53) then
    error("invalid argument to math.random: the interval must lie between -2^53 and 2^53", 2)
  end
  if low > high then
    error("invalid argument to math.random: the interval is empty", 2)
  end
  return math.min(high, low + floor(host.random() * (high - low + 1)))
end

local comet = {}
for _, name in raw.ipairs({ "lookup", "get", "put" }) do
  local where = "comet." .. name .. " cannot wait in a sort comparator, a gsub callback or a metamethod"
  comet[name] = function(...)
    if host.request(name, ...) then
      return nil
    end
    if not isyieldable() then
      error(where, 2)
    end
    return yield()
  end
end
for name, f in raw.pairs(host.facts) do
  comet[name] = f
end

-- A method that is called with a dot gets its object all the same.
local function wrap(f, object)
  return function(first, ...)
    if rawequal(first, object) then
      return f(first, ...)
    end
    return f(object, first, ...)
  end
end

return comet, wrap
