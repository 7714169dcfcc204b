"""Every bound of the protocol and the machines, each with one name. Sizes in bytes, times in seconds."""

from __future__ import annotations

from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20

# --- wire ---------------------------------------------------------------------------------------
MAX_FRAME: Final = 256 * MIB  # MAXMSGSIZE of every socket; larger values travel in chunks
MAX_REQUEST: Final = 4 * MIB  # the same for sockets on which workers answer data requests
MAX_BULK: Final = 16 * MIB  # and for the broker's bulk socket: chunks, and requests
MAX_HEADER: Final = 256 * MIB  # the msgpack frame: many records with small payloads inside
MAX_FRAMES: Final = 4096  # frames of one multipart message
MAX_DEPTH: Final = 64  # nesting of free-form values
OWN_FRAME: Final = 64 * KIB  # buffers from this size on get a frame of their own
MAX_SESSION: Final = 64  # characters of a session id
MAX_KEY: Final = 1024  # characters of a key
MAX_TEXT: Final = 64 * KIB  # characters of reasons and log lines
MAX_REASON: Final = 1024  # characters of a reason that goes to many: why a session left, why keys were cancelled
MAX_NAME: Final = 256  # characters of the name of a peer, host, address, tag, resource or function
MAX_NAMES: Final = 4096  # tags, resources or workers in one list
MAX_THREADS: Final = 1 << 16  # of one worker

# --- small values travel with the records that announce them -----------------------------------------
INLINE_RESULT: Final = 16 * KIB  # a frozen result up to this size travels with its completion
INLINE_ARGS: Final = 32 * KIB  # a pickled argument above it becomes a key held by the client
BROKER_CACHE: Final = 64 * MIB  # inline values that the broker keeps at hand for late comers

# --- turns: what a driver takes in before it flushes -------------------------------------------------
TURN_MESSAGES: Final = 256  # packets drained from one socket per turn,
TURN_BYTES: Final = 8 * MIB  # or payloads of so many bytes,
TURN_SECONDS: Final = 0.02  # or until so much time has gone by: one packet may be thousands of tasks
MESSAGE_ROWS: Final = 1024  # rows with small values that the broker puts into one message
FAILED_BYTES: Final = 256 * KIB  # errors that the broker puts into one message, beyond the first
RUN_ROWS: Final = 32  # the same for tasks with dependencies
INLINED_DEPS: Final = 256  # dependencies of a task whose small values travel with it
INLINED_BYTES: Final = 16 * MIB  # their bytes that go to one worker in one turn
PACKET_RECORDS: Final = 512  # records that a client puts into one message
PACKETS_AHEAD: Final = 64  # unconfirmed packets with which a client lets many records wait
SUBMIT_BYTES: Final = 8 * MIB  # arguments that a client submits in one turn

# --- session layer -------------------------------------------------------------------------------
ACK_EVERY: Final = 32  # packets received before an acknowledgement goes out on its own
ACK_DELAY: Final = 0.2  # and at the latest after this time
HELLO_RETRY: Final = 0.25  # first pause between hellos; doubles up to HELLO_RETRY_MAX
HELLO_RETRY_MAX: Final = 2.0
HEARTBEAT: Final = 1.0  # client, worker and node ping the broker
LEASE_NODE: Final = 10.0  # a node silent for this long is given up, with its workers
LEASE_CLIENT: Final = 30.0  # a client's process may hold its GIL for long
NOTICE: Final = 2.0  # without an answer of the broker, or without a worker for tasks, for this long: somebody is told
NOTICE_MAX: Final = 64.0  # tasks that still have no worker are counted anew at doubling intervals up to this
REDIAL: Final = 10.0  # a socket on which nothing answers is opened anew: the hellos queued in it are gone
HANDSHAKE_TIMEOUT: Final = 10.0  # default time a client waits for the broker's welcome

# --- submission window (tasks and bytes unfinished per client) --------------------------------------
WINDOW_TASKS: Final = 1_000_000
WINDOW_BYTES: Final = 512 * MIB

# --- scheduling ------------------------------------------------------------------------------------
AHEAD_MICROS: Final = 20_000  # measured work queued ahead per worker thread
MIN_MICROS: Final = 8  # what a task costs a worker at least
AHEAD_TASKS: Final = 4096  # tasks queued ahead per worker, whatever they cost
RUNS_FROM: Final = 16  # workers from which on short tasks are handed out several in a row,
RUN_MICROS: Final = 256  # of this duration together: a message costs more than such a task
FOLLOW_MICROS: Final = 2_000  # tasks up to this duration are sent to a worker ahead of the input that they wait for,
FOLLOWERS: Final = 128  # so many at once,
FOLLOWED: Final = 8  # with so many inputs at most
ALLOWED_DEATHS: Final = 3  # worker deaths under a running task before KilledWorker
MAX_RECOMPUTES: Final = 100  # recomputations of one key's lost result
SECEDED_PER_WORKER: Final = 256  # tasks of a worker that have left its thread pool

# --- lanes: a lone task goes straight to a worker ---------------------------------------------------
LANE_AFTER: Final = 3  # lone tasks in a row after which a client asks for a lane; doubles when lanes do not last
LANE_AFTER_MAX: Final = 4096
LANE_PROVEN: Final = 256  # tasks after which a lane counts as one that lasted
LANE_BITS: Final = 12  # of an attempt that count within a lane: a lane has so many tasks before it is renewed
LANE_CREDIT: Final = 1024  # tasks that a client may be ahead of the broker
LANE_ARGS: Final = 16 * KIB  # pickled arguments up to this size go by a lane
LANE_NOTES: Final = 0.005  # seconds that the broker is told later of what client and worker settle by a lane
LANE_MISSES: Final = 3  # early copies in a row that did not come, after which a lane is given up
LANE_PAUSE: Final = 0.01  # after one to two of these the broker no longer counts on early copies
LOOK_OUT: Final = 0.0005  # seconds that a client looks for a lone task's result before it sleeps
LANE_QUIET: Final = 1.0  # a lane unused for this long is taken away if another client asks for one

# --- actors ------------------------------------------------------------------------------------------
ACTOR_WINDOW: Final = (
    1024  # calls of one caller to one actor that are sent and not settled; others wait with the caller
)
ACTOR_WINDOW_BYTES: Final = 64 * MIB  # and their arguments
ACTOR_ROWS: Final = 256  # calls in one message,
ACTOR_BYTES: Final = MIB  # with arguments of so many bytes
ACTOR_PATIENCE: Final = 1.0  # seconds after which it is asked what has become of a call; doubles up to
ACTOR_PATIENCE_MAX: Final = 16.0
ACTOR_ACK: Final = 0.2  # seconds in which a worker hears that a reply has come, if no further call tells it

# --- data transfers --------------------------------------------------------------------------------
CHUNK: Final = 9 * MIB // 4  # most bytes of one chunk, so that what is received is read while it is still in a cache
WHOLE: Final = 8 * MIB  # values up to this size come over a fast link in one piece, and stay where it was received
LARGE_FRAME: Final = MIB  # frames from this size on are received into memory that is kept at hand,
HEAPS_KEPT: Final = 2.0  # for this long
SEGMENTS_KEPT: Final = 256 * MIB  # shared memory of values that are gone, which its maker keeps for others,
REGIONS_KEPT: Final = 1024 * MIB  # and what a process received large values into,
REGIONS_SHARE: Final = 1 / 8  # but no more than this part of a worker's memory limit,
REGION_IDLE: Final = 2.0  # for this long
CHUNK_ROWS: Final = 512  # keys asked for with one request
TRANSFER_WINDOW: Final = 64 * MIB  # bytes a receiver has asked for and not got, over all links
LINK_WINDOW: Final = 16 * MIB  # the same for one link
SHM_MIN: Final = 256 * KIB  # values from this size on go by shared memory between processes of one host
SHM_MAPPINGS: Final = 16384  # mappings that a process keeps; the kernel allows it 65,530 of all kinds
RELAY_BUDGET: Final = 64 * MIB  # bytes granted by the broker and not yet taken
RELAY_CEILING: Final = 96 * MIB  # the same with what was reclaimed from receivers that do not take it
SILENT_PEER: Final = 30.0  # a connection over which nothing comes for so long is closed, and what is queued in it freed
GRANT_TIMEOUT: Final = 10.0  # a relayed request that its holder does not answer is refused
TAKE_TIMEOUT: Final = 2.0  # what a receiver does not take, while it takes nothing else either, is reclaimed
REQUEST_TIMEOUT: Final = 5.0  # a data request without an answer goes another way
PROBE_TIMEOUT: Final = 0.5  # verdict on a peer path
PROBE_RETRY: Final = 5.0  # first pause before a closed path is probed again; doubles
PROBE_RETRY_MAX: Final = 120.0
PEER_SOCKETS: Final = 256  # direct connections kept open, least recently used go first
CONTEXT_SOCKETS: Final = 16384  # of all drivers of a process
GATHER_WINDOW: Final = 1024  # items that gather of an iterator or a queue takes ahead
GATHER_BYTES: Final = 128 * MIB  # and their bytes, by the mean of those handed out
RESULTS_AHEAD: Final = 32  # results that as_completed fetches with one gather

# --- caches and logs -------------------------------------------------------------------------------
FUNCTION_CACHE: Final = 512  # unpickled functions per worker
FUNCTION_CACHE_BYTES: Final = 512 * MIB  # their pickled bytes
LOG_TAIL: Final = 20  # last lines of a dead worker's output in the report
LOG_LINES: Final = 1000  # log records kept per worker for get_worker_logs
CANCELLED_KEPT: Final = 1024  # cancelled keys whose reason a client remembers
RECOVERY: Final = 1.5  # seconds that a broker gives to those who were here before it to come back,
SOUGHT: Final = 10.0  # in which keys that nobody has told it of may yet become known,
COPIES_KEPT: Final = LEASE_CLIENT + 2.0  # and for which it keeps what their workers hold: a client may be late
SOUGHT_TOLD: Final = 1.0  # seconds between two words to those who wait for a key that is sought
COPIES_MOST: Final = 1_000_000
LOST_RETRIES: Final = 5  # times a want for an unknown key is asked again: its maker may have to connect anew

# --- nodes ---------------------------------------------------------------------------------------
QUICK_DEATH: Final = 2.0  # a worker that lived no longer than this died "at once"
RESTART_PAUSE: Final = 0.25  # before the second replacement in a row of workers that died at once; doubles
RESTART_PAUSE_MAX: Final = 30.0
END_GRACE: Final = 3.0  # between SIGTERM and SIGKILL
LOOK: Final = 0.5  # how often a node looks at what its workers run
SPILL_MARK: Final = 0.6  # of a worker's memory limit: from here on values that it holds go to disk
SPILL_LEAST: Final = 0.1  # of it that values may take in any case
PAUSE_MARK: Final = 0.8  # of it: no new task starts
FULL_AND_IDLE: Final = 10.0  # seconds that a worker may be above it without running anything, until it is replaced
KILL_MARK: Final = 0.95  # of it: its node ends the process
SPILL_MIN: Final = 64 * KIB  # smaller values stay
LARGE_RESULT: Final = MIB  # memory is measured after a task that made so much,
MEASURE: Final = 0.2  # and so often besides, while there is work
STUCK: Final = 30.0  # seconds until what could not be written is tried again
INTERRUPT_GRACE: Final = 0.2  # what was cancelled by force may end by itself for so long
INTERRUPTED: Final = 10_000  # of these, remembered for each worker
REPLACE_GRACE: Final = 3.0  # to copy the data of a worker whose task has run out of time
SCALE_GRACE: Final = 10.0  # the same, and to finish what runs, for workers that a smaller number makes superfluous
DRAIN: Final = 20.0  # the same on SIGTERM
LEAVE_COPIES: Final = 1000  # that are begun in one look at a leaving worker
LEAVE_PAUSE: Final = 0.05  # how often the broker looks what of a leaving worker's data is still to be copied
TOKEN_KEPT: Final = 24 * 3600.0  # seconds for which the token of a broker that was killed waits for the next one
SCATTER_NOTICE: Final = 10.0  # seconds without a worker for scattered data after which that is told
DEAD_KEPT: Final = 1 << 12  # workers of which a broker remembers that they have died: a late hello is refused
DEATHS_KEPT: Final = 64  # last reports of dead workers, told again to a broker that knows nothing
MAX_WORKERS: Final = 4096  # of one node

# --- broker ----------------------------------------------------------------------------------------
HOLDERS_TOLD: Final = 8  # holders of one key named to a peer, and the most that count for locality
BYTES_PER_MICRO: Final = 500  # assumed speed of a transfer, to weigh it against waiting for a busy worker
STEAL_MICROS: Final = 1000  # queued work that is taken back at once when a worker is idle; less after STEAL_PAUSE
STEAL_PAUSE: Final = 0.005
STEAL_SAMPLE: Final = 32  # busy workers looked at for the most loaded one
ASK_BACK_TIMEOUT: Final = 1.0  # a worker that gave nothing back is not asked again before
COPY_PAUSE: Final = 0.01  # how often the broker looks how far ordered copies are
COPIES_AHEAD: Final = 256  # keys of one order that are under way
MOVES: Final = 10_000  # keys that one rebalance takes from a worker
FAILURES_KEPT: Final = 32  # last tasks that failed, for those who look
KEYS_SHOWN: Final = 64  # keys of one worker told to those who look
COUNTED_TASKS: Final = 20_000  # up to so many are counted by state for those who look
PLACE_FAN_OUT: Final = 2  # copies pulled from one holder at once while data spreads
PLACE_SILENT: Final = 3.0  # seconds after which another is asked instead of a worker that says nothing
POOLS_KEPT: Final = 64  # placement classes and option sets kept for reuse
PRIORITY_MAX: Final = 1 << 20  # of Options.priority, either sign
ATTACH_WAIT: Final = 1.0  # a relayed request waits so long for its holder's bulk connection
QUEUED_REQUESTS: Final = 1024  # relayed requests that wait, per receiver and per holder without a connection
PARKED_MESSAGES: Final = 4096  # of a client that has been asked for a function
FUNCTIONS_DEFINED: Final = 4096  # functions without tasks that one client may have defined; the oldest are forgotten
CLIENT_FUNCTION_BYTES: Final = 2048 * MIB  # pickled functions of one client's unfinished tasks
WAITING_ASKS: Final = 4096  # questions and calls of one client that wait for their answers
ASK_ENTRIES: Final = 1 << 20  # keys asked about in one question, and names in its answer
CALL_BYTES: Final = 64 * MIB  # what a call outside the task system may carry, and each worker's answer
ANSWER_BYTES: Final = 128 * MIB  # all workers' answers together
LOG_COMPLAINTS: Final = 32  # records about bad input between two sweeps; what is beyond is counted

# --- state that clients share (queues, variables, locks, …) ---------------------------------------------
SHARED_VALUE: Final = MIB  # bytes of one value
SHARED_BYTES: Final = 256 * MIB  # of all
SHARED_CELL: Final = 128  # what the books need for one
MIRRORS: Final = 2  # nodes that keep a copy
MIRROR_PATIENCE: Final = 1.0  # seconds until one that does not confirm is replaced, if there is another
MIRROR_BYTES: Final = 4 * MIB  # of one message
TOPIC_EVENTS: Final = 1000  # kept of each topic,
TOPICS: Final = 1000
TOPIC_BYTES: Final = 16 * MIB  # and all their bytes

# --- strangers, and sessions that do not take what they are sent ---------------------------------------
STRANGER_HEADER: Final = 64 * KIB  # bytes of a packet from a connection that has not said hello
STRANGER_FRAMES: Final = 2
MAX_SESSIONS: Final = 1 << 16
HELLO_PAUSE: Final = 0.1  # hellos of one session, and hello-pleases to one connection, are this far apart
CROWDED_BYTES: Final = 64 * MIB  # unacknowledged by a client: from here on completions carry no values
KEPT_BYTES: Final = 256 * MIB  # unacknowledged by a session: it is given up
KEPT_PACKETS: Final = 1 << 16
KEPT_BYTES_TOTAL: Final = 1024 * MIB  # by all sessions: the one with the most is given up
WEIGH_EVERY: Final = 64  # packets sent and not acknowledged before their bytes are counted
SENT_AGAIN: Final = 16 * MIB  # bytes sent again before the other side has confirmed some of it
VAIN_REPEATS: Final = 8  # times that is done without any progress
BULK_MESSAGES: Final = 64  # of one packet on the bulk socket
SPARE_FILES: Final = 16  # file descriptors; with fewer left, new connections are refused
SPARE_SHARE: Final = 16  # or with less than this part of all that are allowed: a burst takes many between two looks
LISTENERS_LOOK: Final = 2.0  # how often that is looked at; twice as often by those that are awake
REFUSED_KEYS: Final = 1 << 16  # that a receiver was told it cannot have and has not confirmed; then it is told no more
