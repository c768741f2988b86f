"""How much faster is a sweep of transplants than evaluating each written checkpoint?"""
