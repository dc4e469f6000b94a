# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""The compiled twin of `pure`: same names, same behaviour."""

from libc.stdlib cimport free, malloc


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
