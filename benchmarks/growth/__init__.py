"""Growth of cost along every axis of a run: time, memory, compilation.

``slopes`` fits and judges, ``programs`` and ``process_peak`` look at memory, ``axes``
measures one axis each, ``figure`` draws, ``measure`` is the whole.
"""
