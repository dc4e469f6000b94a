# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""The compiled twin of `pure`: same names, same behaviour."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.object cimport PyObject, PyObject_CallObject
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from mlx_serving.native.pure import token_content

cdef extern from "Python.h":
    PyObject *PyDict_GetItemWithError(object mapping, object key) except? NULL
    str PyUnicode_DecodeUTF8Stateful(const char *data, Py_ssize_t size, const char *errors, Py_ssize_t *consumed)


cdef struct Node:
    Py_UCS4 char
    int child       # first child, 0 for none: the root is nobody's child
    int sibling     # next child of the same parent, 0 for none
    int failure     # the longest proper suffix that is itself a prefix; the root's is the root
    int longest     # index of the longest pattern that ends here, -1 for none
    Py_ssize_t depth
    Py_ssize_t live  # length of the longest suffix from which some pattern can still grow


cdef class StopMatcher:
    """Finds the first stop string in a text that arrives in pieces, holding back what may still become one.

    The match that starts earliest wins; of those that start together, the longest. How the text was cut into
    pieces never changes the result. An Aho-Corasick automaton (Aho and Corasick, 1975): linear in the text.
    """

    cdef Node *nodes
    cdef int node
    cdef list patterns
    cdef str held
    cdef Py_ssize_t start
    cdef int candidate
    cdef object _matched

    def __cinit__(self, patterns):
        """Raises ValueError for an empty stop string. No patterns: all text passes through."""
        self.patterns = list(patterns)
        self.held = ""
        self.candidate = -1
        cdef Py_ssize_t size = 1
        cdef str pattern
        for index, pattern in enumerate(self.patterns):
            if not pattern:
                raise ValueError(f"stop string {index} is empty; it must have at least one character")
            size += len(pattern)
        self.nodes = <Node *>malloc(size * sizeof(Node))
        if self.nodes == NULL:
            raise MemoryError()
        self._grow()
        self._link()

    def __dealloc__(self):
        free(self.nodes)

    @property
    def matched(self):
        """The stop string that ended the text, None as long as there was none."""
        return self._matched

    cpdef tuple feed(self, str text):
        """Take the next piece: the text that is safe to show, and the stop string once one is certain.

        The stop string and what follows it are never shown. A certain match ends the text: later pieces
        give `("", matched)`.
        """
        if text is None:
            raise TypeError("text must be str, not None")
        if self._matched is not None:
            return "", self._matched
        cdef Py_ssize_t position = len(self.held)
        cdef Py_UCS4 char
        cdef str emit
        self.held = self.held + text if position else text
        for char in text:
            position += 1
            self.node = self._step(self.node, char)
            self._consider(position)
            if self.candidate >= 0 and position - self.nodes[self.node].live > self.start:
                return self._settle(), self._matched
        cdef Py_ssize_t safe = position - self.nodes[self.node].live
        if safe == position:
            emit, self.held = self.held, ""
        else:
            emit, self.held = self.held[:safe], self.held[safe:]
        self.start -= safe
        return emit, None

    cpdef str flush(self):
        """The text ended: what was held back and no stop string claims. `matched` is final after this."""
        if self.candidate >= 0:
            return self._settle()
        held, self.held = self.held, ""
        return held

    cdef void _grow(self):
        cdef int node, following, used = 1
        cdef str pattern
        cdef Py_UCS4 char
        self.nodes[0] = Node(0, 0, 0, 0, -1, 0, 0)
        for index, pattern in enumerate(self.patterns):
            node = 0
            for char in pattern:
                following = self._child(node, char)
                if following == 0:
                    following = used
                    used += 1
                    self.nodes[following] = Node(
                        char, 0, self.nodes[node].child, 0, -1, self.nodes[node].depth + 1, 0
                    )
                    self.nodes[node].child = following
                node = following
            self.nodes[node].longest = index

    cdef void _link(self):
        """Breadth first, so that a node's failure, which is shallower, is finished before the node."""
        cdef int node, child, failure
        cdef list queue = [0]
        for node in queue:
            failure = self.nodes[node].failure
            if node:
                if self.nodes[node].longest < 0:
                    self.nodes[node].longest = self.nodes[failure].longest
                self.nodes[node].live = (
                    self.nodes[node].depth if self.nodes[node].child else self.nodes[failure].live
                )
            child = self.nodes[node].child
            while child:
                self.nodes[child].failure = self._step(failure, self.nodes[child].char) if node else 0
                queue.append(child)
                child = self.nodes[child].sibling

    cdef int _child(self, int node, Py_UCS4 char) noexcept:
        cdef int child = self.nodes[node].child
        while child and self.nodes[child].char != char:
            child = self.nodes[child].sibling
        return child

    cdef int _step(self, int node, Py_UCS4 char) noexcept:
        cdef int following = self._child(node, char)
        while following == 0 and node:
            node = self.nodes[node].failure
            following = self._child(node, char)
        return following

    cdef void _consider(self, Py_ssize_t position):
        """Keep the pattern that ends at `position` of the held text if it starts earlier, or is longer."""
        cdef int pattern = self.nodes[self.node].longest
        if pattern < 0:
            return
        cdef Py_ssize_t start = position - len(<str>self.patterns[pattern])
        if self.candidate < 0 or start <= self.start:
            self.start, self.candidate = start, pattern

    cdef str _settle(self):
        cdef str emit = self.held[: self.start]
        self.held = ""
        self._matched, self.candidate = self.patterns[self.candidate], -1
        return emit


cdef class TokenTexts:
    """The contents of the ids of one byte-level vocabulary. Each is read when it is first asked for, and kept."""

    cdef object token_of
    cdef dict contents

    def __init__(self, token_of):
        """`token_of` says how the vocabulary writes an id. Ids without a token have no text."""
        self.token_of = token_of
        self.contents = {}

    cpdef object content(self, token_id):
        """What `token_content` says of it."""
        cdef PyObject *known = PyDict_GetItemWithError(self.contents, token_id)
        if known != NULL:
            return <object>known
        content = self.contents[token_id] = token_content(self.token_of(token_id) or "")
        return content


cdef class ByteDecoder:
    """The ids of one answer to its text, never splitting a character: a UTF-8 decoder that goes on where it was.

    All pieces together are the text of all bytes together, where each longest beginning of a character that comes to
    nothing is one U+FFFD. A piece has all characters that are complete.
    """

    cdef TokenTexts texts
    cdef frozenset hidden
    cdef bytes held  # the beginning of a character, None for none

    def __init__(self, TokenTexts texts not None, frozenset hidden not None):
        """`hidden`: ids without text."""
        self.texts = texts
        self.hidden = hidden

    cpdef str add(self, token_id):
        """The text that has become certain with this id, possibly none."""
        if token_id in self.hidden:
            return ""
        content = self.texts.content(token_id)
        if type(content) is str:
            if self.held is None:
                return <str>content
            content = (<str>content).encode()
        cdef bytes data = content if self.held is None else self.held + <bytes>content
        cdef Py_ssize_t size = PyBytes_GET_SIZE(data), consumed = 0
        cdef str text = PyUnicode_DecodeUTF8Stateful(PyBytes_AS_STRING(data), size, "replace", &consumed)
        self.held = data[consumed:] if consumed < size else None
        return text

    cpdef str flush(self):
        """The rest, when no id will follow."""
        held, self.held = self.held, None
        return "" if held is None else (<bytes>held).decode("utf-8", "replace")


cdef extern from *:
    # In C, so that the order of the words is known where the rounds are unrolled: twice as fast.
    """
    static const uint64_t blake2b_initial[8] = {
        0x6A09E667F3BCC908, 0xBB67AE8584CAA73B, 0x3C6EF372FE94F82B, 0xA54FF53A5F1D36F1,
        0x510E527FADE682D1, 0x9B05688C2B3E6C1F, 0x1F83D9ABFB41BD6B, 0x5BE0CD19137E2179,
    };
    static const uint8_t blake2b_order[10][16] = {
        {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
        {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4}, {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
        {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13}, {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
        {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11}, {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
        {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5}, {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0},
    };

    static inline uint64_t blake2b_word(const uint8_t *data) {
        uint64_t word = 0;
        for (int i = 0; i < 8; i++) word |= (uint64_t)data[i] << (8 * i);
        return word;
    }

    #define BLAKE2B_TURN(word, bits) (((word) >> (bits)) | ((word) << (64 - (bits))))
    #define BLAKE2B_WORD(round, i) m[blake2b_order[(round) % 10][i]]
    #define BLAKE2B_MIX(round, i, a, b, c, d) \
        a += b + BLAKE2B_WORD(round, i); d = BLAKE2B_TURN(d ^ a, 32); c += d; b = BLAKE2B_TURN(b ^ c, 24); \
        a += b + BLAKE2B_WORD(round, i + 1); d = BLAKE2B_TURN(d ^ a, 16); c += d; b = BLAKE2B_TURN(b ^ c, 63);
    #define BLAKE2B_ROUND(round) \
        BLAKE2B_MIX(round, 0, v[0], v[4], v[8], v[12]) \
        BLAKE2B_MIX(round, 2, v[1], v[5], v[9], v[13]) \
        BLAKE2B_MIX(round, 4, v[2], v[6], v[10], v[14]) \
        BLAKE2B_MIX(round, 6, v[3], v[7], v[11], v[15]) \
        BLAKE2B_MIX(round, 8, v[0], v[5], v[10], v[15]) \
        BLAKE2B_MIX(round, 10, v[1], v[6], v[11], v[12]) \
        BLAKE2B_MIX(round, 12, v[2], v[7], v[8], v[13]) \
        BLAKE2B_MIX(round, 14, v[3], v[4], v[9], v[14])

    /* Takes in 128 bytes; `taken` bytes of the message end with them. */
    static void blake2b_compress(uint64_t *h, const uint8_t *data, uint64_t taken, int is_last) {
        uint64_t m[16], v[16];
        for (int i = 0; i < 16; i++) m[i] = blake2b_word(data + 8 * i);
        for (int i = 0; i < 8; i++) { v[i] = h[i]; v[8 + i] = blake2b_initial[i]; }
        v[12] ^= taken;
        if (is_last) v[14] = ~v[14];
        BLAKE2B_ROUND(0) BLAKE2B_ROUND(1) BLAKE2B_ROUND(2) BLAKE2B_ROUND(3) BLAKE2B_ROUND(4) BLAKE2B_ROUND(5)
        BLAKE2B_ROUND(6) BLAKE2B_ROUND(7) BLAKE2B_ROUND(8) BLAKE2B_ROUND(9) BLAKE2B_ROUND(10) BLAKE2B_ROUND(11)
        for (int i = 0; i < 8; i++) h[i] ^= v[i] ^ v[8 + i];
    }
    """
    const uint64_t *blake2b_initial
    uint64_t blake2b_word(const uint8_t *data) nogil
    void blake2b_compress(uint64_t *h, const uint8_t *data, uint64_t taken, bint is_last) nogil


cdef uint64_t _digest(const uint8_t *data, Py_ssize_t size, uint64_t salt) noexcept nogil:
    """BLAKE2b of 8 bytes, as a little-endian number."""
    cdef uint64_t[8] h
    cdef uint8_t[128] rest
    cdef Py_ssize_t done = 0
    memcpy(h, blake2b_initial, sizeof(h))
    h[0] ^= 0x01010008  # fan-out 1, depth 1, no key, a digest of 8 bytes
    h[4] ^= salt
    while size - done > 128:
        blake2b_compress(h, data + done, done + 128, False)
        done += 128
    memset(rest, 0, sizeof(rest))
    memcpy(rest, data + done, size - done)
    blake2b_compress(h, rest, size, True)
    return h[0]


def chained_digests(bytes seed not None, bytes packed not None, Py_ssize_t width):
    """A 64-bit digest for each whole block of `width` bytes: BLAKE2b (RFC 7693), salted with the digest before.

    The first block's salt is `seed`, of 8 bytes; ValueError for any other length, and for a `width` below 1.
    """
    if len(seed) != 8 or width < 1:
        raise ValueError("the seed must have 8 bytes, and a block at least one")
    cdef Py_ssize_t i, count = len(packed) // width
    cdef const uint8_t *data = <const uint8_t *>PyBytes_AS_STRING(packed)
    cdef uint64_t chain = blake2b_word(<const uint8_t *>PyBytes_AS_STRING(seed))
    cdef uint64_t *digests = <uint64_t *>malloc(max(count, 1) * sizeof(uint64_t))
    if digests == NULL:
        raise MemoryError()
    try:
        with nogil:
            for i in range(count):
                chain = digests[i] = _digest(data + i * width, width, chain)
        return [digests[i] for i in range(count)]
    finally:
        free(digests)


def unpack_rows(kind, str form not None, list rows not None, unpack):
    """The messages of one class from positional rows.

    `form` has a letter for each field: i an integer, s a text, t token ids, e an empty array, n nil. A row that is just
    so becomes a message, with tuples for its arrays; any other one is `unpack`'s, which says what is wrong with it or
    knows what else it may hold. TypeError if `rows` is no list, ValueError for another letter.
    """
    if not set(form) <= set("isten"):
        raise ValueError(f"the form {form!r} has a letter other than i, s, t, e and n")
    cdef Py_ssize_t i, count = len(rows)
    cdef tuple fields, messages = PyTuple_New(count)
    for i in range(count):
        row = rows[i]
        fields = _plain_fields(form, row) if type(row) is list else None
        message = unpack(row) if fields is None else PyObject_CallObject(kind, fields)
        _put(messages, i, message)
    return messages


cdef inline void _put(tuple new, Py_ssize_t i, object value):
    """Fill a place of a tuple that nobody else has seen."""
    Py_INCREF(value)
    PyTuple_SET_ITEM(new, i, value)


cdef tuple _plain_fields(str form, list row):
    """None for a row of another form."""
    cdef Py_ssize_t i, width = len(form)
    cdef Py_UCS4 letter
    cdef tuple fields
    if len(row) != width:
        return None
    fields = PyTuple_New(width)
    for i in range(width):
        letter, value = form[i], row[i]
        if letter == "i":
            if type(value) is not int:
                return None
        elif letter == "s":
            if type(value) is not str:
                return None
        elif letter == "n":
            if value is not None:
                return None
        else:
            if type(value) is not list or (letter == "e" and <list>value):
                return None
            for each in <list>value:
                if type(each) is not int:
                    return None
            value = tuple(<list>value)
        _put(fields, i, value)
    return fields
