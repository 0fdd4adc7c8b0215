"""temporary"""
from ra_blip.data.images import *
