"""Which tokens an answer may go on with, so that it fits a schema, an expression or a grammar.

On the server a part of the target's rule, at every node of a tree; on an edge a hint for its draft.
The grammars themselves are llguidance's. Knows text and ids; nothing of models, wires or requests.
"""
