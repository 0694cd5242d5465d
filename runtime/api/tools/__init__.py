"""Tools and reasoning: what models write of them, and what OpenAI's API says of them.

`conversation.py` turns a client's messages into those that chat templates expect, and
`chat_format.py` finds in a template how its model writes calls and thoughts. `parser.py` reads
them in the text of an answer as it comes, each call by one of the readers of `calls.py`, and
`grammar.py` holds a model to calls that are valid. `use.py` is all of it for one request.
"""
