"""What is said on the wire: messages, topics, identifiers. No I/O.

``S`` and ``H`` are two versions of absmach/propeller that are understood here: that of its FL demo's guide (February 2026, commit
2341c9d) and a later one (August 2026, commit 102e676), which renamed settings and added fields.
"""
