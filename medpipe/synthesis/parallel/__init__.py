"""One network on several devices, or in several turns, with the result of one device.

A volume is cut into slabs along one axis. `medpipe.synthesis.parallel.modules` makes a twin
of a network that computes a slab and asks for what lies beyond it; `exchange` fetches that
from the other processes; `patches` samples latents and `decode` decodes them.
"""
