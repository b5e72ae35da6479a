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
    buffer_append, buffer_consume, buffer_reserve, buffer_size,
)
from kongps.core.wire.function cimport Function
from kongps.core.wire.phases cimport NO_PHASE, phase_number
from kongps.core.wire.protobuf cimport (
    EMPTY, LIST_VALUE, PLAIN_MESSAGE, STRUCT, Span, decode, decode_only, encode, encode_args, message_type, read_run,
    read_varint, skip_field, write_varint,
)
from kongps.core.wire.protocol cimport (
    COMMAND, HANDLE_EVENT, MAX_MESSAGE, STEP, STEP_ERROR, Protocol,
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


cdef class Rpc:
    """How one PDK function travels."""


cdef Rpc rpc_of(Function function):
    """How `function` travels.

    :raises PDKError: when ProtoBuf:1 has no place for it.
    """
    cdef Rpc rpc
    if function.protobuf_rpc is not None:
        return <Rpc>function.protobuf_rpc
    adapted = ADAPTED.get(function.name, Adapted())
    sent = adapted.function or function.name
    if sent not in RPCS:
        raise PDKError(
            function.name, "ProtoBuf:1 has no place for this function; MsgPack:1 can call it"
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
        f"a frame of {length} bytes is larger than any that is taken (--max-message)"
    )


cdef class ProtobufRPC(Protocol):
    """One connection that speaks ProtoBuf:1."""

    def __cinit__(self):
        self.name = "ProtoBuf:1"
        self.longest = MAX_MESSAGE
        self.unanswered = deque()

    cdef bint next_call(self, Call call) except -1:
        cdef const uint8_t* data
        cdef uint32_t length
        cdef bint is_call
        if self.out_of_step:
            raise ProtocolError("a frame came before the call that it would answer was asked")
        while buffer_size(&self.inbox) >= 4 and not self.closing:
            if self.ignored:
                if not self.ignore_answer():
                    return False
                continue
            data = <const uint8_t*>self.inbox.data + self.inbox.begin
            memcpy(&length, data, 4)
            if length > self.longest or (length > MAX_CALL_SIZE and not self.unanswered):
                raise too_long(length)
            if buffer_size(&self.inbox) - 4 < length:
                return False
            try:
                if self.unanswered:
                    is_call = self.read_answer(call, data + 4, length)
                else:
                    is_call = self.read_call(call, data + 4, length)
            except UnpackError as error:
                raise ProtocolError(f"not a ProtoBuf:1 message: {error}") from None
            buffer_consume(&self.inbox, 4 + <size_t>length)
            if is_call:
                return True
        return False

    cdef bint ignore_answer(self) except -1:
        """Passes over an answer that nobody waits for; False when it has not come whole."""
        cdef uint32_t length
        if self.ignored == ALL_IGNORED:
            buffer_consume(&self.inbox, buffer_size(&self.inbox))
            return False
        memcpy(&length, self.inbox.data + self.inbox.begin, 4)
        if length > self.longest:
            raise too_long(length)
        if buffer_size(&self.inbox) - 4 < length:
            return False
        buffer_consume(&self.inbox, 4 + <size_t>length)
        self.ignored -= 1
        if not self.ignored:
            self.closing = self.ending
        return True

    cdef bint read_call(self, Call call, const uint8_t* data, size_t size) except -1:
        """Reads an RpcCall; always True."""
        cdef Span span, event
        cdef uint64_t tag, number
        cdef const uint8_t* inner
        cdef size_t length
        cdef bint is_event = False
        if self.event:
            raise ProtocolError("a frame came that answers nothing while an event is under way")
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
                read_run(&span, &inner, &length)
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
            else:
                skip_field(&span, tag)
        if is_event:
            if call.phase == NO_PHASE:
                raise ProtocolError("an event came without the name of a phase")
            call.kind = HANDLE_EVENT
            self.calls += 1
            if self.slot != NULL:
                self.note(call)
            return True
        fields = decode(message_type("RpcCall"), data, size)
        for name, (method, argument) in COMMANDS.items():
            if name in fields:
                call.kind = COMMAND
                call.method = method
                call.value = argument(fields[name])
                self.calls += 1
                if self.slot != NULL:
                    self.note(call)
                return True
        raise ProtocolError("a call came with no command that is known")

    cdef bint read_answer(self, Call call, const uint8_t* data, size_t size) except -1:
        """Reads the answer to the oldest call; False when nobody waits for it."""
        cdef Rpc rpc = <Rpc>self.unanswered.popleft()
        if self.slot != NULL:
            self.slot.unanswered -= 1
            self.slot.reading = False
        cdef tuple args
        cdef object value = None
        if rpc.form == ONLY_FIELD:
            value = decode_only(rpc.output, data, size)
            if value is None:
                value = rpc.absent
        elif rpc.form == NOTHING or rpc.output.well_known != PLAIN_MESSAGE or size:
            value = decode(rpc.output, data, size)
        if not self.awaiting and not self.unanswered:
            self.closing = self.ending
        if self.unanswered or not self.awaiting:
            return False
        call.kind = STEP
        if rpc.after is not None and value is not None:
            try:
                value = rpc.after(value, self.awaited_args)
            except AnswerError as error:
                call.kind = STEP_ERROR
                value = str(error)
            except (TypeError, ValueError, AttributeError):
                raise ProtocolError(
                    f"the answer to {rpc.function.name} is not what this function gives"
                ) from None
        self.awaiting = False
        self.awaited_args = None
        call.target = self.event
        call.value = value
        return True

    cdef bint answer_pdk_call(self, int64_t sequence, int64_t event, Function function,
                              tuple args, bint pipelined) except -1:
        cdef Rpc rpc = rpc_of(function)
        cdef size_t written = buffer_size(&self.outbox)
        cdef size_t start
        cdef uint32_t size
        cdef tuple sent = args
        try:
            if rpc.before is not None and not (rpc.only_for_false and args[-1] is not False):
                sent = rpc.before(args)
            if len(sent) > rpc.most_args:
                raise PackError(f"ProtoBuf:1 has no place for its argument {rpc.most_args + 1}")
            buffer_append(
                &self.outbox, PyBytes_AS_STRING(rpc.head), <size_t>PyBytes_GET_SIZE(rpc.head)
            )
            buffer_reserve(&self.outbox, 4)
            self.outbox.end += 4
            start = buffer_size(&self.outbox)
            encode_args(&self.outbox, rpc.input, sent)
            if buffer_size(&self.outbox) - start > MAX_MESSAGE:
                raise PackError(f"the arguments have more than {MAX_MESSAGE} bytes")
        except BaseException as error:
            self.outbox.end = self.outbox.begin + written
            if isinstance(error, PackError):
                raise PackError(f"{function.name}: {error}; MsgPack:1 can carry it") from None
            raise
        size = <uint32_t>(buffer_size(&self.outbox) - start)
        memcpy(self.outbox.data + self.outbox.begin + start - 4, &size, 4)
        self.event = event
        # Kong says nothing unasked; the frame that the handler runs for is no longer there. What is
        # there while calls are unanswered is part of an answer to them: the handler runs elsewhere.
        if not self.unanswered and buffer_size(&self.inbox) > 0:
            self.out_of_step = True
        if function.terminal:
            # Kong does not answer: it closes the connection (3.9) or leaves it (2.8). It does
            # answer the calls before, and would not come to this one if it could not.
            self.event = 0
            self.calls = 0
            self.ending = True
            self.closing = not self.unanswered and not self.ignored
            return False
        self.unanswered.append(rpc)
        if pipelined and rpc.form == NOTHING and buffer_size(&self.outbox) <= MAX_PIPELINED:
            return False
        self.awaiting = True
        self.awaited_args = args
        return True

    cdef int write_return(self, int64_t sequence) except -1:
        """Ends an event: an empty frame, and the RpcReturn with nothing but its number."""
        cdef size_t start
        cdef uint32_t size = 0
        buffer_append(&self.outbox, &size, 4)
        buffer_reserve(&self.outbox, 4)
        self.outbox.end += 4
        start = buffer_size(&self.outbox)
        write_varint(&self.outbox, TAG_SEQUENCE)
        write_varint(&self.outbox, <uint64_t>sequence)
        size = <uint32_t>(buffer_size(&self.outbox) - start)
        memcpy(self.outbox.data + self.outbox.begin + start - 4, &size, 4)
        self.event = 0
        self.calls = 0
        return 0

    cdef bint ends_with_kong(self) noexcept:
        return self.ending

    cdef int owed(self) except -1:
        return <int>len(self.unanswered)

    cdef bint is_idle(self) except -1:
        return not (self.unanswered or self.ending or self.ignored) and Protocol.is_idle(self)

    cdef int answer_return(self, int64_t sequence, int64_t event) except -1:
        return self.write_return(sequence)

    cdef int answer_failure(self, int64_t sequence, int64_t event, str text) except -1:
        # Closing would make Kong 3.9 start the event again, without end.
        return self.write_return(sequence)

    cdef int answer_result(self, int64_t sequence, object result) except -1:
        cdef size_t written = buffer_size(&self.outbox)
        cdef size_t start
        cdef uint32_t size
        self.event = 0
        try:
            buffer_reserve(&self.outbox, 4)
            self.outbox.end += 4
            start = buffer_size(&self.outbox)
            encode(&self.outbox, message_type("RpcReturn"), return_fields(sequence, result), 0)
        except BaseException:
            self.outbox.end = self.outbox.begin + written
            raise
        size = <uint32_t>(buffer_size(&self.outbox) - start)
        memcpy(self.outbox.data + self.outbox.begin + start - 4, &size, 4)
        self.calls = 0
        return 0

    cdef int answer_error(self, int64_t sequence, str text) except -1:
        # There is no error in an RpcReturn. A connection that is closed makes Kong 3.9 start the
        # instance again; for a command Kong takes a return without a result for "nothing there".
        if text.startswith("No plugin instance"):
            self.closing = True
            return 0
        return self.answer_result(sequence, None)


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
