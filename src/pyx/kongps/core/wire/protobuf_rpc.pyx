"""ProtoBuf:1, Kong's protocol of length-prefixed Protocol Buffers messages, without I/O.

A frame is a length, four bytes in the machine's order, and that many bytes. Kong sends an
``RpcCall`` and reads an ``RpcReturn``. In between, for ``cmd_handle_event``, the connection
belongs to the event: the server sends a frame with a PDK function's name and one with its
arguments, Kong answers with one frame; an empty frame stands before the ``RpcReturn``.

Kong answers several calls sent at once one by one, so a call without a result need not be waited
for (recorded on 2.8 and 3.9). There is no error in an ``RpcReturn``: a call that failed in Kong
closes the connection, and so does this side where Kong is to start over.
"""

import json
import sys
from collections import deque

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from kongps.core.io.buffer cimport (
    Buffer, buffer_append, buffer_consume, buffer_reserve, buffer_size,
)
from kongps.core.wire.function cimport Function
from kongps.core.wire.phases cimport NO_PHASE, phase_number
from kongps.core.wire.protobuf cimport Span, decode, decode_only, read_run, read_varint, skip_field
from kongps.core.wire.protobuf_types cimport EMPTY, LIST_VALUE, PLAIN_MESSAGE, STRUCT, message_type
from kongps.core.wire.protobuf_writer cimport encode, encode_args, write_varint
from kongps.core.wire.protocol cimport (
    COMMAND, HANDLE_EVENT, STEP, STEP_ERROR, Call, Protocol, unread,
)

from kongps.core.wire.tables import ADAPTED, RPCS, Adapted
from kongps.errors import AnswerError, PDKError, PackError, ProtocolError, UnpackError

cdef enum:
    # Tags of RpcCall, CmdHandleEvent and RpcReturn on the path of every event.
    TAG_SEQUENCE = 1 << 3
    TAG_HANDLE_EVENT = 36 << 3 | 2
    TAG_INSTANCE_ID = 1 << 3
    TAG_EVENT_NAME = 2 << 3 | 2

# Field of RpcCall: the method it stands for, and what is to become of its message.
COMMANDS = {
    "cmd_get_plugin_names": ("plugin.GetPluginNames", lambda fields: None),
    "cmd_get_plugin_info": ("plugin.GetPluginInfo", lambda fields: fields.get("name", "")),
    "cmd_start_instance": (
        "plugin.StartInstance",
        lambda fields: {"Name": fields.get("name", ""), "Config": fields.get("config", b"")},
    ),
    "cmd_get_instance_status": (
        "plugin.InstanceStatus", lambda fields: fields.get("instance_id", 0)
    ),
    "cmd_close_instance": ("plugin.CloseInstance", lambda fields: fields.get("instance_id", 0)),
}

# What a wrapped message is called: one field, `v`.
WRAPPERS = frozenset(("Bool", "Int", "Number", "String", "ByteString"))


STATE_NAMES = (
    "READY", "COMMAND_CAME", "EVENT_CAME", "AWAITING", "EXITING", "OUT_OF_STEP", "CLOSING",
)

# By state, the states that a connection may move to: the table in protobuf_rpc.pxd.
cdef int[7] MOVES
MOVES[<int>READY] = 1 << COMMAND_CAME | 1 << EVENT_CAME | 1 << CLOSING
MOVES[<int>COMMAND_CAME] = 1 << READY | 1 << CLOSING
MOVES[<int>EVENT_CAME] = (
    1 << AWAITING | 1 << READY | 1 << EXITING | 1 << OUT_OF_STEP | 1 << CLOSING
)
MOVES[<int>AWAITING] = 1 << EVENT_CAME | 1 << CLOSING
MOVES[<int>EXITING] = 1 << CLOSING
MOVES[<int>OUT_OF_STEP] = 1 << CLOSING
MOVES[<int>CLOSING] = 1 << CLOSING


cdef class Rpc:
    """How one PDK function travels."""


cdef Rpc rpc_of(Function function):
    """How `function` travels.

    :raises PDKError: when ProtoBuf:1 does not have it.
    """
    cdef Rpc rpc
    if function.protobuf_rpc is not None:
        return <Rpc>function.protobuf_rpc
    adapted = ADAPTED.get(function.name, Adapted())
    sent = adapted.function or function.name
    if sent not in RPCS:
        raise PDKError(
            function.name, "ProtoBuf:1 does not have this function; MsgPack:1 can call it"
        )
    rpc = Rpc()
    rpc.function = function
    name = sent.encode()
    rpc.head = len(name).to_bytes(4, sys.byteorder) + name
    rpc.input = message_type(RPCS[sent][0])
    rpc.output = message_type(RPCS[sent][1])
    if rpc.input.well_known == LIST_VALUE:
        rpc.most_args = sys.maxsize
    else:
        rpc.most_args = 1 if rpc.input.well_known == STRUCT else len(rpc.input.fields)
    rpc.before = adapted.before
    rpc.only_for_false = adapted.only_for_false
    rpc.after = adapted.after
    rpc.absent = adapted.absent
    if rpc.output.well_known == EMPTY:
        rpc.form = NOTHING
    elif rpc.output.name in WRAPPERS:
        rpc.form = ONLY_FIELD
    else:
        rpc.form = WHOLE
    function.protobuf_rpc = rpc
    return rpc


cdef object too_long(uint32_t length):
    return ProtocolError(
        f"a frame of {length} bytes is larger than --max-message allows"
    )


cdef object not_protobuf(object error):
    return ProtocolError(f"not a ProtoBuf:1 message: {error}")


cdef object decode_answer(Rpc rpc, const uint8_t* data, size_t size):
    """What a PDK function has returned."""
    cdef object value
    if rpc.form == ONLY_FIELD:
        value = decode_only(rpc.output, data, size)
        return rpc.absent if value is None else value
    if rpc.form == NOTHING or rpc.output.well_known != PLAIN_MESSAGE or size:
        return decode(rpc.output, data, size)
    return None


cdef inline size_t begin_frame(Buffer* out) except? 0:
    """Leaves room for a frame's length. Returns where the frame begins."""
    buffer_reserve(out, 4)
    out.end += 4
    return buffer_size(out)


cdef inline void end_frame(Buffer* out, size_t start) noexcept:
    """Writes the length of the frame that began at `start` and ends here."""
    cdef uint32_t size = <uint32_t>(buffer_size(out) - start)
    memcpy(out.data + out.begin + start - 4, &size, 4)


cdef class ProtobufRPC(Protocol):
    """One connection that speaks ProtoBuf:1."""

    def __cinit__(self):
        self.name = "ProtoBuf:1"
        self.unanswered = deque()

    cdef int move(self, RpcState to) except -1:
        """Changes the state. OUT_OF_STEP and CLOSING stay, whatever is still answered.

        :raises RuntimeError: for a move that is not in the table of protobuf_rpc.pxd.
        """
        if (self.state == OUT_OF_STEP or self.state == CLOSING) and to != CLOSING:
            return 0
        if not MOVES[<int>self.state] & (1 << to):
            raise RuntimeError(
                f"a ProtoBuf:1 connection cannot move from {STATE_NAMES[<int>self.state]} "
                f"to {STATE_NAMES[<int>to]}"
            )
        self.state = to
        return 0

    cdef int close(self) except -1:
        self.move(CLOSING)
        return Protocol.close(self)

    cdef int restore(self, bint is_event, int ignored) except -1:
        """Goes on with a connection on which a process that is gone had a call to answer.

        The next `ignored` answers of Kong are to PDK calls of that process.
        """
        self.move(EVENT_CAME if is_event else COMMAND_CAME)
        self.ignored = ignored
        return 0

    # --- what comes from Kong ----------------------------------------------------------------

    cdef bint next_call(self, Call call) except -1:
        cdef const uint8_t* data
        cdef uint32_t length
        cdef bint is_call
        buffer_consume(&self.inbox, self.taken)
        self.taken = 0
        if self.state == OUT_OF_STEP:
            raise ProtocolError("a frame came before the call that it would answer was made")
        while buffer_size(&self.inbox) >= 4 and self.state != CLOSING:
            if self.ignored:
                if not self.ignore_answer():
                    return False
                continue
            data = <const uint8_t*>self.inbox.data + self.inbox.begin
            memcpy(&length, data, 4)
            if length > self.max_message or (length > MAX_CALL_SIZE and not self.unanswered):
                raise too_long(length)
            if buffer_size(&self.inbox) - 4 < length:
                return False
            try:
                if self.unanswered:
                    is_call = self.read_answer(call, data + 4, length)
                else:
                    is_call = self.read_call(call, data + 4, length)
            except UnpackError as error:
                raise not_protobuf(error) from None
            if is_call:
                self.taken = 4 + <size_t>length
                return True
            buffer_consume(&self.inbox, 4 + <size_t>length)
        return False

    cdef bint ignore_answer(self) except -1:
        """Passes over an answer that nobody waits for; False when it has not come whole."""
        cdef uint32_t length
        if self.ignored == ALL_IGNORED:
            buffer_consume(&self.inbox, buffer_size(&self.inbox))
            return False
        memcpy(&length, self.inbox.data + self.inbox.begin, 4)
        if length > self.max_message:
            raise too_long(length)
        if buffer_size(&self.inbox) - 4 < length:
            return False
        buffer_consume(&self.inbox, 4 + <size_t>length)
        self.ignored -= 1
        self.exited()
        return True

    cdef int exited(self) except -1:
        """Closes the connection after an exit, once Kong has answered what was asked before it."""
        if self.state == EXITING and not self.unanswered and not self.ignored:
            self.close()
        return 0

    cdef bint read_call(self, Call call, const uint8_t* data, size_t size) except -1:
        """Reads an RpcCall; always True."""
        cdef Span span
        cdef uint64_t tag, number
        cdef bint is_event = False
        if self.state != READY:
            raise ProtocolError("a frame came that answers no call, while an event is under way")
        span.at = data
        span.end = data + size
        call.sequence = call.target = 0
        call.method = call.value = None
        call.phase = NO_PHASE
        while span.at < span.end:
            read_varint(&span, &tag)
            if tag == TAG_SEQUENCE:
                read_varint(&span, &number)
                call.sequence = <int64_t>number
            elif tag == TAG_HANDLE_EVENT:
                is_event = True
                self.read_event(&span, call)
            else:
                skip_field(&span, tag)
        self.sequence = call.sequence
        if not is_event:
            return self.read_command(call, data, size)
        if call.phase == NO_PHASE:
            raise ProtocolError("an event came without the name of a phase")
        call.kind = HANDLE_EVENT
        self.move(EVENT_CAME)
        return True

    cdef int read_event(self, Span* span, Call call) except -1:
        """Reads a CmdHandleEvent: the instance's id and the phase."""
        cdef Span event
        cdef uint64_t tag, number
        cdef const uint8_t* inner
        cdef size_t length
        read_run(span, &inner, &length)
        event.at = inner
        event.end = inner + length
        while event.at < event.end:
            read_varint(&event, &tag)
            if tag == TAG_INSTANCE_ID:
                read_varint(&event, &number)
                call.target = <int64_t>number
            elif tag == TAG_EVENT_NAME:
                read_run(&event, &inner, &length)
                call.phase = phase_number(<const char*>inner, length)
            else:
                skip_field(&event, tag)
        return 0

    cdef bint read_command(self, Call call, const uint8_t* data, size_t size) except -1:
        cdef dict fields = decode(message_type("RpcCall"), data, size)
        for name, (method, argument) in COMMANDS.items():
            if name in fields:
                call.kind = COMMAND
                call.method = method
                call.value = argument(fields[name])
                self.move(COMMAND_CAME)
                return True
        raise ProtocolError("a call came without a known command")

    cdef bint read_answer(self, Call call, const uint8_t* data, size_t size) except -1:
        """Reads the answer to the oldest call; False when nobody waits for it."""
        cdef Rpc rpc = <Rpc>self.unanswered.popleft()
        if self.unanswered or self.state != AWAITING:
            decode_answer(rpc, data, size)
            self.exited()
            return False
        self.move(EVENT_CAME)
        self.answered = rpc
        call.kind = STEP
        call.sequence = self.sequence
        call.target = self.event
        call.raw = call.raw_value = data
        call.raw_size = size
        return True

    cdef int read_step(self, Call call) except -1:
        cdef Rpc rpc = self.answered
        cdef tuple args = self.awaited_args
        self.answered = self.awaited_args = None
        try:
            call.value = decode_answer(rpc, call.raw_value, call.raw_size)
        except UnpackError as error:
            raise not_protobuf(error) from None
        if rpc.after is None or call.value is None:
            return 0
        try:
            call.value = rpc.after(call.value, args)
        except AnswerError as error:
            call.kind = STEP_ERROR
            call.value = str(error)
        except (TypeError, ValueError, AttributeError):
            raise ProtocolError(
                f"the answer to {rpc.function.name} is not what this function returns"
            ) from None
        return 0

    # --- what goes to Kong -------------------------------------------------------------------

    cdef bint answer_pdk_call(self, int64_t sequence, int64_t event, Function function,
                              tuple args, bint pipelined) except -1:
        cdef Rpc rpc = rpc_of(function)
        cdef size_t written = buffer_size(&self.outbox)
        cdef size_t start
        cdef tuple sent = args
        try:
            if rpc.before is not None and not (rpc.only_for_false and args[-1] is not False):
                sent = rpc.before(args)
            if len(sent) > rpc.most_args:
                raise PackError(f"ProtoBuf:1 does not have its argument {rpc.most_args + 1}")
            buffer_append(
                &self.outbox, PyBytes_AS_STRING(rpc.head), <size_t>PyBytes_GET_SIZE(rpc.head)
            )
            start = begin_frame(&self.outbox)
            encode_args(&self.outbox, rpc.input, sent)
            if buffer_size(&self.outbox) - start > MAX_ARGUMENTS:
                raise PackError(f"the arguments have more than {MAX_ARGUMENTS} bytes")
        except BaseException as error:
            self.outbox.end = self.outbox.begin + written
            if isinstance(error, PackError):
                raise PackError(f"{function.name}: {error}; use MsgPack:1 for it") from None
            raise
        end_frame(&self.outbox, start)
        if function.terminal:
            # Kong does not answer: it closes the connection (3.9) or leaves it (2.8). It does
            # answer the calls before, and would not come to this one if it could not.
            self.event = 0
            self.unanswered_calls = 0
            self.move(EXITING)
            self.exited()
            return False
        self.event = event
        # Kong sends nothing unasked; the frame that the handler runs for is no longer counted. What
        # is there while calls are unanswered is part of an answer to them: the handler runs elsewhere.
        if not self.unanswered and unread(self) > 0:
            self.move(OUT_OF_STEP)
        self.unanswered.append(rpc)
        if pipelined and rpc.form == NOTHING and buffer_size(&self.outbox) <= MAX_PIPELINED:
            return False
        self.move(AWAITING)
        self.awaited_args = args
        return True

    cdef int write_return(self, int64_t sequence) except -1:
        """Ends an event: an empty frame, and the RpcReturn with nothing but its number."""
        cdef size_t start
        end_frame(&self.outbox, begin_frame(&self.outbox))
        start = begin_frame(&self.outbox)
        write_varint(&self.outbox, TAG_SEQUENCE)
        write_varint(&self.outbox, <uint64_t>sequence)
        end_frame(&self.outbox, start)
        return self.answered_call()

    cdef int answered_call(self) except -1:
        self.event = 0
        self.unanswered_calls = 0
        return self.move(READY)

    cdef bint closed_by_kong(self) noexcept:
        return self.state == EXITING or self.state == CLOSING

    cdef int unanswered_functions(self) except -1:
        return <int>len(self.unanswered)

    cdef bint is_idle(self) except -1:
        return (
            self.state == READY and not self.unanswered and not self.ignored
            and Protocol.is_idle(self)
        )

    cdef int answer_return(self, int64_t sequence, int64_t event) except -1:
        return self.write_return(sequence)

    cdef int answer_failure(self, int64_t sequence, int64_t event, str text) except -1:
        # Closing would make Kong 3.9 start the event again, without end.
        return self.write_return(sequence)

    cdef int answer_result(self, int64_t sequence, object result) except -1:
        cdef size_t written = buffer_size(&self.outbox)
        cdef size_t start = begin_frame(&self.outbox)
        try:
            encode(&self.outbox, message_type("RpcReturn"), return_fields(sequence, result), 0)
        except BaseException:
            self.outbox.end = self.outbox.begin + written
            raise
        end_frame(&self.outbox, start)
        return self.answered_call()

    cdef int answer_error(self, int64_t sequence, str text) except -1:
        # There is no error in an RpcReturn. Kong takes a return without a result for "nothing there".
        return self.answer_result(sequence, None)

    cdef int answer_no_instance(self, int64_t sequence, str text) except -1:
        # A connection that is closed makes Kong 3.9 start the instance again.
        return self.close()


def return_fields(sequence, result):
    """The fields of an RpcReturn, from the result of a command as MsgPack:1 has it."""
    fields = {"sequence": sequence}
    if isinstance(result, list):
        fields["plugin_names"] = {"names": result}
    elif isinstance(result, dict) and "Schema" in result:
        fields["plugin_info"] = {
            "name": result["Name"],
            "updated_at": int(result["ModTime"]),
            "loaded_at": int(result["LoadTime"]),
            "phases": result["Phases"],
            "version": result["Version"],
            "priority": result["Priority"],
            "schema": json.dumps(result["Schema"]),
        }
    elif isinstance(result, dict) and "Id" in result:
        fields["instance_status"] = {
            "name": result["Name"],
            "instance_id": result["Id"],
            "started_at": int(result["StartTime"]),
        }
    return fields
