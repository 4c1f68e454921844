"use strict";
// What a client keeps until the hypervisor has committed it: blocks that may be asked for again, and
// digests of outcomes that may come again.

const { crc32 } = require("node:zlib");

class KeptBlocks {
  // crcs: the running digests before the first event.
  constructor(crcs) {
    this.start = { end: 0n, crcs }; // up to here all is committed and dropped
    this.blocks = [];
    this.unsent = 0; // how many at the end are to be sent
  }

  get end() {
    return (this.blocks.at(-1) ?? this.start).end;
  }

  get next() {
    return this.unsent ? this.blocks.at(-this.unsent) : undefined;
  }

  // Keeps an EventBlock that is to be sent.
  add(block) {
    const end = BigInt(block.first_event) + BigInt(block.event_count);
    this.blocks.push({ end, crcs: block.column_crcs, block });
    this.unsent += 1;
  }

  sent() {
    this.unsent -= 1;
  }

  forget(committed) {
    while (this.blocks.length && this.blocks[0].end <= committed) this.start = this.blocks.shift();
    this.unsent = Math.min(this.unsent, this.blocks.length);
  }

  // Has all be unsent from an event on; returns the digests there, nothing if no kept block begins there.
  goBack(event) {
    this.unsent = this.blocks.filter(({ end }) => end > event).length;
    return [this.start, ...this.blocks].find(({ end }) => end === event)?.crcs;
  }
}

class ToldOutcomes {
  constructor() {
    this.digests = new Map(); // by first event and lane: [end, digest]
  }

  // Tells whether an OutcomePart has not come before; one that says something else than before is an error.
  isNew(part) {
    // The decisions that a part defines depend on the stream.
    const digest = crc32(JSON.stringify({ ...part, new_decisions: [] }));
    const key = `${part.first_event} ${part.lane}`;
    const known = this.digests.get(key);
    if (known === undefined) {
      this.digests.set(key, [BigInt(part.first_event) + BigInt(part.event_count), digest]);
    } else if (known[1] !== digest) {
      throw new Error(`the hypervisor sent outcomes from event ${part.first_event} on again, and others`);
    }
    return known === undefined;
  }

  forget(committed) {
    for (const [key, [end]] of this.digests) if (end <= committed) this.digests.delete(key);
  }
}

module.exports = { KeptBlocks, ToldOutcomes };
