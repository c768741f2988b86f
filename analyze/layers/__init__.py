"""Which single layers suffice for what training gained, and which are necessary?"""
