"use strict";
// One session from the client's side, however often it is cut: docs/sessions.md, "The protocol".

const { randomUUID } = require("node:crypto");
const { status } = require("@grpc/grpc-js");
const { Columns } = require("./columns");
const { Retry, mayPass, reasonOf, told } = require("./failures");
const { KeptBlocks, ToldOutcomes } = require("./kept");

const FRAME_BYTES = 512n; // of a block beside its columns, at most
const MOST_UNANSWERED = 3;
const least = (...numbers) => numbers.reduce((a, b) => (a < b ? a : b));
const most = (a, b) => (a > b ? a : b);

class Session {
  #changed = () => {}; // wakes what waits for a change
  #call; // the stream that is open
  #unanswered = 0; // streams given up before they were open: such an Open may come late, and fence a later one
  #hasEnded = false; // the source
  #furthest = 0n; // events that were ever applied
  #told = 0n; // outcomes that have come on this stream, or did not have to

  // definitions: the contract's. config: a SessionConfig. onOutcomes is given each OutcomePart once, log a line.
  constructor(client, config, kinds, { onOutcomes, log, retrySeconds = 60 }) {
    this.client = client;
    this.config = config;
    this.columns = new Columns(config.columns, kinds);
    this.kept = new KeptBlocks([...this.columns.crcs]);
    this.outcomes = new ToldOutcomes();
    this.onOutcomes = onOutcomes;
    this.log = log;
    this.retry = new Retry(retrySeconds);
    this.wantsOutcomes = !/UNSPECIFIED|SUMMARY/.test(config.outcome_level ?? "SUMMARY");
    this.applied = this.committed = this.received = 0n;
    this.reconnects = 0;
  }

  // Runs the session to its end: all events of batches, lists of Events in JSON form; returns the report's bytes.
  async run(batches) {
    const request = { request_id: randomUUID(), config: this.config };
    const created = await this.#again("CreateSession", request); // a repeat returns the same session
    this.id = created.session_id;
    this.log(`session ${this.id}`);
    this.limits = Object.fromEntries(Object.entries(created.limits).map(([name, value]) => [name, BigInt(value)]));
    const [, report] = await Promise.all([this.#feed(batches), this.#converseUntilFinished()]);
    return report;
  }

  // Takes events from the source as there is room for them: never again, and never more than may be kept.
  async #feed(batches) {
    const largest = this.#largestBlock();
    for await (const events of batches) {
      for (let start = 0; start < events.length; start += largest) {
        const block = this.columns.block(events.slice(start, start + largest));
        await this.#until(() => !this.kept.unsent && this.#hasRoom(this.columns.nextEvent));
        this.kept.add(block);
        this.#send();
      }
    }
    this.#hasEnded = true;
    this.#endIfDone();
  }

  async #converseUntilFinished() {
    for (;;) {
      try {
        await this.#converse();
        return await this.#finish();
      } catch (error) {
        // After a crash the hypervisor may lack events that it had applied.
        const isBehind = reasonOf(error) === "EVENT_COUNT_MISMATCH";
        if (!isBehind && !mayPass(error) && !this.#fencedItself(error)) throw error;
        this.log(`cut at event ${this.applied}: ${told(error)}`);
        if (!(await this.retry.mayWait(error.retryAfterMs))) throw error;
        this.reconnects += 1;
      }
    }
  }

  // Carries one stream until all is applied and told.
  async #converse() {
    const call = this.client.StreamEvents();
    call.on("error", () => {}); // the loop below throws it
    let drained;
    try {
      call.write({ open: { session_id: this.id, received_events: String(this.received) } });
      for await (const response of call) {
        if (response.message === "opened") this.#goOn(response.opened, call);
        else if (response.message === "outcomes") this.#takeOutcomes(response.outcomes);
        else if (response.message === "acknowledgement") this.#acknowledged(response.acknowledgement);
        else if (response.message === "draining") drained = response.draining;
        this.#endIfDone();
        this.#changed();
      }
      if (drained) throw stopping(drained);
      if (!this.#isDone) throw new Error(`the hypervisor ended the stream at event ${this.applied}`);
    } catch (error) {
      if (!this.#call && !reasonOf(error)) this.#unanswered = Math.min(this.#unanswered + 1, MOST_UNANSWERED);
      throw error;
    } finally {
      this.#call = undefined;
      call.cancel();
    }
  }

  #goOn(opened, call) {
    const event = BigInt(opened.next_event);
    const crcs = this.kept.goBack(event);
    if (crcs === undefined) {
      throw new Error(`the hypervisor goes on at event ${event}, this client at ${this.kept.end}`);
    }
    if (String(crcs) !== String(opened.column_crcs)) {
      throw new Error(`the hypervisor has other events than this client below event ${event}`);
    }
    this.log(`opened at event ${event}, epoch ${opened.epoch}`);
    this.#call = call;
    this.retry.hasReached();
    this.#told = least(event, this.received);
    if (this.#told) this.#confirm(this.#told);
    this.#standsAt(event, BigInt(opened.committed_events)); // the outcomes that are lacking follow
  }

  #acknowledged({ applied_events, committed_events }) {
    const applied = BigInt(applied_events);
    if (this.wantsOutcomes && applied > most(this.#told, this.received)) {
      throw new Error(`event ${applied} is acknowledged, but outcomes from ${this.#told} on have not come`);
    }
    this.#standsAt(applied, BigInt(committed_events));
  }

  #standsAt(applied, committed) {
    this.applied = applied;
    this.committed = committed;
    if (this.applied > this.#furthest) {
      this.#furthest = this.applied; // what is done again after a crash is no progress
      this.retry.progress();
    }
    this.kept.forget(this.committed);
    this.outcomes.forget(least(this.committed, this.received));
    this.log(`applied ${this.applied}, committed ${this.committed}`);
    this.#send();
  }

  #takeOutcomes(part) {
    if (this.outcomes.isNew(part)) this.onOutcomes(part);
    if (!part.is_last_part) return;
    this.#told = BigInt(part.first_event) + BigInt(part.event_count);
    this.received = most(this.received, this.#told);
    this.#confirm(this.#told);
  }

  #confirm(received) {
    this.#call.write({ confirm: { received_events: String(received) } });
  }

  #send() {
    while (this.#call && this.kept.next && this.#hasRoom(this.kept.next.end)) {
      this.#call.write({ block: this.kept.next.block });
      this.kept.sent();
    }
  }

  // Tells whether a block up to an event may be sent: an empty window takes any that may be uncommitted.
  #hasRoom(end) {
    const { max_window_events: window, max_uncommitted_events: uncommitted } = this.limits;
    if (uncommitted && end - this.committed > uncommitted) return false;
    const sent = this.kept.next?.block.first_event ?? this.kept.end;
    return BigInt(sent) === this.applied || !window || end - this.applied <= window;
  }

  #largestBlock() {
    const { max_block_events, max_window_events, max_uncommitted_events, max_message_bytes } = this.limits;
    const fitting = (max_message_bytes - FRAME_BYTES) / BigInt(this.columns.rowBytes);
    const limits = [max_block_events, max_window_events, max_uncommitted_events / 2n, fitting];
    return Number(least(65_536n, ...limits.filter((limit) => limit > 0n)));
  }

  get #isDone() {
    return this.#hasEnded && [this.applied, this.wantsOutcomes ? this.received : this.applied].every(
      (events) => events === this.kept.end,
    );
  }

  #endIfDone() {
    if (this.#call && this.#isDone && !this.#call.writableEnded) this.#call.end();
  }

  async #finish() {
    const { nextEvent, crcs } = this.columns;
    const request = { session_id: this.id, event_count: String(nextEvent), column_crcs: crcs };
    return (await this.#again("FinishSession", request)).report; // a repeat returns the stored bytes
  }

  #fencedItself(error) {
    const mayHave = reasonOf(error) === "FENCED" && this.#unanswered > 0;
    if (mayHave) this.#unanswered -= 1;
    return mayHave;
  }

  // Makes a call, and makes it again while that makes sense.
  async #again(method, request) {
    for (;;) {
      try {
        return await new Promise((resolve, reject) => {
          this.client[method](request, (error, answer) => (error ? reject(error) : resolve(answer)));
        });
      } catch (error) {
        if (!mayPass(error) || !(await this.retry.mayWait())) throw error;
      }
    }
  }

  async #until(isTrue) {
    while (!isTrue()) {
      await new Promise((resolve) => {
        this.#changed = resolve;
      });
    }
  }
}

function stopping({ applied_events, retry_after_ms }) {
  const details = `the hypervisor is stopping at event ${applied_events}`;
  return Object.assign(new Error(details), { code: status.UNAVAILABLE, details, retryAfterMs: retry_after_ms });
}

module.exports = { Session };
