"use strict";
// Events as columns: what a block carries, and the running digests of it.

const { crc32 } = require("node:zlib");

// In the order of Column: field of EventBlock, field of Event, bytes of a value, how it goes into a message.
const COLUMNS = {
  COLUMN_KINDS: ["kinds", "kind", 1, (bytes) => [...bytes]],
  COLUMN_ARGS: ["args", "arg", 1, (bytes) => bytes],
  COLUMN_MODES: ["modes", "modes", 1, (bytes) => bytes],
  COLUMN_MARKS: ["marks", "marks", 1, (bytes) => bytes],
  COLUMN_VCPUS: ["vcpus", "vcpu", 1, (bytes) => bytes],
  COLUMN_GAP_CYCLES: ["gap_cycles", "gap_cycles", 4, (bytes) => numbers(bytes, 4).map(Number)],
  COLUMN_SELECTORS: ["selectors", "selector", 4, (bytes) => numbers(bytes, 4).map(Number)],
  COLUMN_VALUES: ["values", "value", 8, (bytes) => numbers(bytes, 8).map(String)],
  COLUMN_RIPS: ["rips", "rip", 8, (bytes) => numbers(bytes, 8).map(String)],
};

// Returns little-endian unsigned integers as BigInts.
function numbers(bytes, size) {
  const read = size === 8 ? (at) => bytes.readBigUInt64LE(at) : (at) => BigInt(bytes.readUIntLE(at, size));
  return Array.from({ length: bytes.length / size }, (_, i) => read(i * size));
}

// Returns a value of an event's JSON form as a BigInt; a double above 2^53 is not what was meant.
function integer(value) {
  if (typeof value === "number" && !Number.isSafeInteger(value)) {
    throw new RangeError(`${value} is no exact integer; write it as a string`);
  }
  return BigInt(value);
}

// The declared columns of a session: makes blocks of its events, one after the other.
class Columns {
  // kinds: the numbers of EventKind by name. proto-loader would send an unknown name as 0.
  constructor(declared, kinds) {
    this.kinds = kinds;
    this.layout = declared.map((name) => COLUMNS[name]);
    this.crcs = this.layout.map(() => 0);
    this.nextEvent = 0n;
  }

  get rowBytes() {
    return this.layout.reduce((sum, [, , size]) => sum + size, 0);
  }

  // Returns an EventBlock of the next events, given in the JSON form of Event.
  block(events) {
    const block = { first_event: String(this.nextEvent), event_count: events.length };
    const columns = this.layout.map(([, field, size]) => this.#column(events, field, size));
    columns.forEach((bytes, i) => {
      const [name, , , inMessage] = this.layout[i];
      block[name] = inMessage(bytes);
      this.crcs[i] = crc32(bytes, this.crcs[i]);
    });
    block.column_crcs = [...this.crcs];
    this.nextEvent += BigInt(events.length);
    return block;
  }

  #column(events, field, size) {
    const bytes = Buffer.alloc(events.length * size);
    events.forEach((event, i) => {
      const value = field === "kind" ? this.#kind(event.kind) : integer(event[field] ?? 0);
      if (BigInt.asUintN(8 * size, value) !== value) {
        throw new RangeError(`event ${this.nextEvent + BigInt(i)}: ${field} ${value} has more than ${size} bytes`);
      }
      if (size === 8) bytes.writeBigUInt64LE(value, i * size);
      else bytes.writeUIntLE(Number(value), i * size, size);
    });
    return bytes;
  }

  #kind(name) {
    if (!this.kinds.has(name)) throw new RangeError(`no event kind is called ${name}`);
    return BigInt(this.kinds.get(name));
  }
}

module.exports = { Columns, integer };
