"""Do the measurements support the paper's claims?"""
