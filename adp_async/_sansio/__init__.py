"""The pure core: what is true without a network.  Theory of operation.

A metric, from the call to the wire::

     any thread            the delivery thread: decisions           the delivery thread: waiting
    ════════════          ════════════════════════════             ═════════════════════════════
    run.log_metric("loss", 0.12, step=7)
        │  values: made plain, checked, stamped
        ▼
     Intake ─── past its gate? ring ───────────────────────────────►  Sender: look again
        ·                                                                │
        └─────────────► Accumulator.take_in(records, now)  ◄─────────────┤  at a ring, and
                            │  one lane for a run                        │  once a linger
                            │  event: Took                               │
                            ▼                                            │
                        Dispatcher.drain(now)  ◄─────────────────────────┤  has the service room,
                            │  lanes that are ready, in turn             │  does it answer anybody?
                            │  cut ─► apart ─► fit ─► seal               │
                            │  event: Sealed                             │
                            ▼                                            ▼
                        RecordBatch: body and retry token  ──────────►  a task for each batch
                                                                         │  spool: token on disk?
     Receipt = the record                                                ▼  Caller:
        ▲               Throttle: is it our turn?  ───────────────────► sleep ◄──┐
        │                                                              sign: a new date
        │                                                              send      │
        │               read_reply ─► None or AdpError  ◄────────────── Reply    │
        │                   │         who answered?                              │
        │                   ├─ 401, mended by a refresh or the right time ───────┘
        │                   ▼
        │               action_for(error) ─► Dispatcher.answered
        │                   │
        │                   ├─ DELIVERED ──► succeed ───────────────┐
        │                   ├─ WAIT_TURN ──► wait_turn                        ┐
        │                   ├─ BACK_OFF, HOLD ─ whose fault? ──► back_off     │
        │                   ├─ RENEW_TOKEN ──► renew                          ├─ back at the head
        │                   ├─ HALVE ──► too_large                            │  of its lane
        │                   ├─ SPLIT ──► refuse: Refusals finds the bad ones  ┘
        │                   └─ GIVE_UP ──► give_up ─────────────────┐
        │                                                           ▼
        └────────────── record.place = a Verdict; events ─► waiters, journal, intake

Rules of this package
---------------------

*Nothing acts.*  No clock, no dice, no thread, no socket, no disk, no coroutine.  Time is the
argument *now*, in monotonic seconds; chance is a *jitter* from [0, 1) or a supply of tokens.  So
every rule about time is a table in a test, and an hour of outage takes a millisecond there.

*It says when to come back.*  `Accumulator.next_deadline` and `Throttle.delay` are all that the
shell needs to sleep by: `drain` hands something out exactly when the deadline has come, if there
is room.  A shell that looks too often does no harm, one that looks late sends fuller batches.

*One thread.*  What is here has no locks, since it belongs to the delivery thread.  Threads meet in
the Intake, outside.

*It calls nobody.*  What happened in the lanes is a list of facts (`events`), which the shell takes
and hands on.  The one way back to the shell is a receipt's: awaiting it asks its lane (`Waits`).

*It imports `entities` and `errors`, and nothing else of ours.*

What a lane promises
--------------------

A lane numbers its records in the order of the calls.  A batch is a *span* of those numbers; it may
go out in parts, and the span is settled when each of its records is.  `settled_until` is
where the first unsettled span begins: a flush waits for that to pass the number it saw, and the
journal forgets everything before it.

A lane is ready when its next request is full, when its first record has lingered, or when someone
waits for it.  Lanes leave in the order in which they became ready, and after one batch a lane goes
to the end of the line, however old its records are: a busy run and ten thousand quiet ones share
the way out evenly.

Metrics append, so batches of metrics fly side by side.  Params and tags are a *barrier*: a batch
with one of them leaves when nothing else of its run is in flight, and nothing follows before its
end.  That is all it takes to keep their order, also through resends, halves and splits, which go
back to the head of the lane.

A batch is sealed for life: body and retry token stay the same on every attempt.  What is cut anew
(a half, a part) is another request, under another token.

Why a record is its own receipt
-------------------------------

The call that logs a metric may cost no more than an append.  So there is one object for a point:
what goes into the body, what the caller keeps and awaits, what knows its end.  Its `place` is the
lane while it waits or flies, and a `Verdict` when that is over; waiting is asked of the place.

The modules
-----------

======================  ============================================================================
`endpoints`, `urls`     the operations, one row each; a call's arguments sorted, and its URL
`call`                  one call of an operation as it was asked for, checked
`codec`, `plain`        entities to JSON and back; what callers hand in, as plain JSON
`wire_names`            the one place that knows how the wire spells names
`messages`, `replies`   a request and a reply as values; who answered, and what it means
`texts`                 texts from outside, fit to be shown: printable, short, without values
`signing`, `signature`  what is signed, by which clock; the signature's string and its header
`values`, `arguments`   what callers hand in, to ``log_*`` and to direct calls: plain, or named
`cleaning`              what ``strict=False`` makes of keys and texts; `flattening`: of nested ones
`records`               metric, param, tag as they wait, and the body of a log-batch
`lane`, `record_queue`  one run: its records by number, and those that wait in memory
`lanes`, `batch`        the lanes of all runs; records sealed for one request
`schedule`, `line`      when a lane is ready; the order in which ready lanes leave
`accumulator`           takes records in, hands batches out, learns what became of them
`events`                what happened in the lanes, for the shell
`sealing`               records cut into requests
`rejections`            refused records, counted, and named until they are reported
`spilling`              records that go to the disk and come back
`discarding`            records given up without a word of the service
`dispatch`              whose fault a failure is, and so when the next batch may leave
`refusals`, `blame`     which records a refusal is about, by its words and by trying
`concurrency`           how many batches are worth having under way
`actions`               what an error means for a batch
`journal`, `packing`    what has to outlive the process, as notes for the spool; as bytes
`ranges`                from a number to a number: joined, and without each other
`run_start`, `statuses`  a run that starts without the service, and how a run ends
`artifact_uris`         where artifacts belong, and what they may be called
`samples`, `waiting`    what a display draws of the metrics; what it says while something waits
`outward`               errors on their way out, without our inner frames
`names`                 which experiment has a name, for as long as that is believed
`retry`, `throttle`     when one request may be tried again; when any request may leave
`timetable`             when requests leave that share a quota with those of other clients
`rules`                 what a setting may be, and how a value is shown in a message
`service_address`       what may be set as platform, workspace, region and URL
======================  ============================================================================
"""
