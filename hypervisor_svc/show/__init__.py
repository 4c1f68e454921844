"""What the listing commands print: policies as conditions, their differences, prices, stored reports.

``listings`` has a function for each command. Of a policy, ``moments`` and ``conditions`` find the few
conditions that tell its answers apart, ``fields`` words its constants; ``text``, ``diff``, ``dot`` and
``json_text`` are the forms, and ``output`` chooses one.
"""
