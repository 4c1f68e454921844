"use strict";
// Checks wire vectors (tests/contract/vectors.py) with protobuf for Node, and prints what differs.
//
//   node vectors.js vectors.json

const fs = require("node:fs");
const path = require("node:path");
const { isDeepStrictEqual } = require("node:util");
const protobuf = require("protobufjs");
const { PROTOS } = require("./contract");

const JSON_FORM = { longs: String, enums: String, bytes: String };

const root = new protobuf.Root();
root.resolvePath = (_, target) => path.join(PROTOS, target);
const files = fs.readdirSync(path.join(PROTOS, "exitlab/v1")).filter((name) => name.endsWith(".proto"));
root.loadSync(files.map((name) => `exitlab/v1/${name}`), { keepCase: true });

const rows = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
const differing = [];
for (const { what, message, hex, json, plain = hex } of rows) {
  const type = root.lookupType(message);
  const read = type.toObject(type.decode(Buffer.from(hex, "hex")), JSON_FORM);
  const written = Buffer.from(type.encode(type.fromObject(json)).finish()).toString("hex");
  if (!isDeepStrictEqual(read, json)) differing.push({ what, read, json });
  if (written !== plain) differing.push({ what, written, plain });
}
console.log(JSON.stringify({ rows: rows.length, differing }));
