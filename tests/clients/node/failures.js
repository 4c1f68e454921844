"use strict";
// What a failed call means: another attempt may mend it, or nothing does.

const { status } = require("@grpc/grpc-js");
const protobuf = require("protobufjs");

const PASSING = new Set([status.UNAVAILABLE, status.DEADLINE_EXCEEDED, status.CANCELLED]);
const CUT = new Set([status.INTERNAL, status.UNKNOWN]); // where no hypervisor has said so
const PASSING_REASONS = new Set(["TOO_MANY_STREAMS"]);
const FIRST_WAIT_MS = 50;
const LONGEST_WAIT_MS = 5_000;

// The standard error details (google.rpc), as far as they are needed.
const DETAILS = protobuf.parse(`syntax = "proto3";
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; }`, { keepCase: true }).root;

// Returns the hypervisor's reason for a failure, e.g. FENCED; empty if it gave none.
function reasonOf(error) {
  const [bytes] = error.metadata?.get("grpc-status-details-bin") ?? [];
  if (!bytes) return "";
  for (const { type_url, value } of DETAILS.lookupType("Status").decode(bytes).details) {
    if (!type_url.endsWith("/google.rpc.ErrorInfo")) continue;
    const info = DETAILS.lookupType("ErrorInfo").decode(value);
    if (info.domain === "exitlab") return info.reason;
  }
  return "";
}

// Tells whether another attempt makes sense: the other end was not there, or the way to it was cut.
function mayPass(error) {
  const reason = reasonOf(error);
  if (PASSING.has(error.code)) return true;
  return reason ? PASSING_REASONS.has(reason) : CUT.has(error.code);
}

// Says a failure in one line.
function told(error) {
  const reason = reasonOf(error);
  const text = error.code === undefined ? error.message : `${error.details} (${status[error.code]})`;
  return reason ? `${text} [reason ${reason}]` : text;
}

// Waits longer after each failure, by chance up to twice as long as before, until it has taken too long.
class Retry {
  constructor(seconds) {
    this.milliseconds = 1000 * seconds;
    this.progress();
  }

  // Take note that something got done.
  progress() {
    this.longestWait = FIRST_WAIT_MS;
    this.left = this.milliseconds;
    this.failingSince = undefined;
  }

  // Take note that the other end was reached, which may now take its time to get further.
  hasReached() {
    if (this.failingSince !== undefined) this.left -= performance.now() - this.failingSince;
    this.failingSince = undefined;
  }

  // Waits before another attempt; false, at once, if it is time to give up.
  async mayWait(leastMilliseconds = 0) {
    this.failingSince ??= performance.now();
    const left = this.failingSince + this.left - performance.now();
    if (left <= 0) return false;
    const wait = Math.max(leastMilliseconds, Math.random() * this.longestWait);
    this.longestWait = Math.min(LONGEST_WAIT_MS, 2 * this.longestWait);
    await new Promise((resolve) => setTimeout(resolve, Math.min(left, wait)));
    return true;
  }
}

module.exports = { Retry, mayPass, reasonOf, told };
