class Plugin:
    def __init__(self, config):
        self.config = config

    def rewrite(self, kong):
        pass
