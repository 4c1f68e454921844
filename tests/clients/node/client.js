"use strict";
// A guest in Node, by the contract alone.
//
//   node client.js [--reflection] ADDRESS <input >report
//
// The input has a line for the SessionConfig and then lines of events, each a list of Events; both are in
// protobuf's JSON form. They are sent as they come, as columns. The report's bytes go to standard output; what
// happens meanwhile is told on standard error, with a digest of the outcomes at the end.

const readline = require("node:readline");
const { crc32 } = require("node:zlib");
const contract = require("./contract");
const { told } = require("./failures");
const { Session } = require("./session");

// The reference's outcomes: how many, and a digest of stories and story values.
class Story {
  constructor(lanes) {
    this.lane = lanes; // the leading reference comes after the lanes
    this.events = 0;
    this.stories = 0;
    this.values = 0;
  }

  take(part) {
    if (part.lane !== this.lane) return;
    const values = Buffer.alloc(8 * part.story_values.length);
    part.story_values.forEach((value, i) => values.writeBigUInt64LE(BigInt(value), 8 * i));
    this.events += part.event_count;
    this.stories = crc32(part.stories, this.stories);
    this.values = crc32(values, this.values);
  }
}

async function main(args) {
  const isReflected = args[0] === "--reflection";
  const address = args[isReflected ? 1 : 0];
  if (!address) throw new Error("usage: node client.js [--reflection] ADDRESS <input >report");
  const definitions = isReflected ? await contract.fromServer(address) : contract.fromFiles();
  const lines = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();
  const config = parsed((await lines.next()).value ?? "", "the first line is the SessionConfig");
  const story = new Story(config.lanes.length);
  const client = contract.connect(definitions, address);
  const session = new Session(client, config, contract.numbersOf(definitions, "exitlab.v1.EventKind"), {
    onOutcomes: (part) => story.take(part),
    log: (line) => process.stderr.write(`${line}\n`),
  });
  const report = await session.run(batches(lines));
  const { events, stories, values } = story;
  process.stderr.write(`finished ${JSON.stringify({ events, stories, values, reconnects: session.reconnects })}\n`);
  process.stdout.write(report);
  client.close();
}

async function* batches(lines) {
  for await (const line of { [Symbol.asyncIterator]: () => lines }) yield parsed(line, "each line is a list of events");
}

function parsed(line, expected) {
  try {
    return JSON.parse(line);
  } catch (error) {
    throw new Error(`${expected}, as JSON: ${error.message}`);
  }
}

main(process.argv.slice(2)).catch((error) => {
  process.stderr.write(`error: ${told(error)}\n`);
  process.exit(3);
});
