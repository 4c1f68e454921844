"use strict";
// The contract as a client in Node gets it: from the .proto files, or from the server by reflection.

const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");
const protobuf = require("protobufjs");
const descriptor = require("protobufjs/ext/descriptor");

const PROTOS = path.join(__dirname, "..", "..", "..", "protos");
const FILE = "exitlab/v1/hypervisor.proto";
const SERVICE = "exitlab.v1.HypervisorService";
// 64-bit numbers become strings: as doubles they would lose what is above 2^53.
const OPTIONS = { keepCase: true, longs: String, enums: String, defaults: true, oneofs: true };

// The two messages of the standard reflection service, as far as they are needed.
const REFLECTION = protobuf.parse(`syntax = "proto3";
  message Request { string file_by_filename = 3; string file_containing_symbol = 4; }
  message Files { repeated bytes file_descriptor_proto = 1; }
  message Response { Files file_descriptor_response = 4; }`, { keepCase: true }).root;

// Returns the contract's definitions, read from the .proto files.
function fromFiles() {
  return protoLoader.loadSync(FILE, { ...OPTIONS, includeDirs: [PROTOS] });
}

// Returns the contract's definitions as the server describes them.
async function fromServer(address) {
  const client = new grpc.Client(address, grpc.credentials.createInsecure());
  const files = new Map();
  const asked = [{ file_containing_symbol: SERVICE }];
  try {
    while (asked.length) {
      for (const bytes of await describe(client, asked.shift())) {
        const file = descriptor.FileDescriptorProto.decode(bytes);
        files.set(file.name, file);
        const lacking = file.dependency.filter((name) => !files.has(name));
        asked.push(...lacking.map((name) => ({ file_by_filename: name })));
      }
    }
  } finally {
    client.close();
  }
  const set = descriptor.FileDescriptorSet.encode({ file: [...files.values()] }).finish();
  return protoLoader.loadFileDescriptorSetFromBuffer(Buffer.from(set), OPTIONS);
}

async function describe(client, request) {
  const [Request, Response] = ["Request", "Response"].map((name) => REFLECTION.lookupType(name));
  const call = client.makeBidiStreamRequest(
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    (message) => Buffer.from(Request.encode(message).finish()),
    (bytes) => Response.decode(bytes),
  );
  call.write(request);
  call.end();
  for await (const response of call) {
    if (response.file_descriptor_response) return response.file_descriptor_response.file_descriptor_proto;
  }
  throw new Error(`the server does not describe ${JSON.stringify(request)}`);
}

// Returns the numbers of an enum by name.
function numbersOf(definitions, name) {
  return new Map(definitions[name].type.value.map((value) => [value.name, value.number]));
}

// Returns a client of the hypervisor's service; what a message may weigh is for Limits to say.
function connect(definitions, address) {
  const { HypervisorService } = grpc.loadPackageDefinition(definitions).exitlab.v1;
  return new HypervisorService(address, grpc.credentials.createInsecure(), {
    "grpc.max_receive_message_length": -1,
    "grpc.max_send_message_length": -1,
    "grpc.keepalive_time_ms": 20_000,
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 2_000,
  });
}

module.exports = { PROTOS, fromFiles, fromServer, numbersOf, connect };
