-- The part of the library that is written in Lua: wrappers that charge for work without instructions, keep limits
-- from being caught, and let a handler wait. What they close over is out of the reach of objects.
local raw, host = ...
local type, select, string, table, math = raw.type, raw.select, raw.string, raw.table, raw.math
local yield, isyieldable = raw.coroutine.yield, raw.coroutine.isyieldable
local raw_pcall, raw_xpcall, raw_sort, rawequal, error = raw.pcall, raw.xpcall, table.sort, raw.rawequal, raw.error

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

-- Only %* shows tables; it is also what `{x}` in a string becomes.
function string.format(text, ...)
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
for _, name in raw.ipairs({ "find", "match", "gmatch", "gsub", "split" }) do
  local original = string[name]
  string[name] = function(s, p, ...)
    if type(s) == "string" and type(p) == "string" then
      local cost = #s * #p / 64
      if cost > 1 then
        host.charge(cost)
      end
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
  if not (low <= high) then
    error("invalid argument to math.random: the interval is empty", 2)
  end
  return low + floor(host.random() * (high - low + 1))
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
