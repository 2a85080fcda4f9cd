"""What happens to the mesh: something is killed every few seconds, and meanwhile every service is restarted in turn."""

import asyncio
import time


class Trouble:
    def __init__(self, mesh, random, say):
        self.mesh, self.random, self.say = mesh, random, say
        self.killed, self.restarted = [], []

    async def kills(self, until, every_s):
        """`kill -9` of one process, any of them, and its start after a moment, as an orchestrator does it."""
        while time.monotonic() + every_s < until:
            await asyncio.sleep(every_s)
            self.mesh.check_nobody_ended()
            up = [service for service in self.mesh.services.values() if not service.busy.locked()]
            service = self.random.choice(up)
            async with service.busy:
                self.say(f"kill -9 {service.name}")
                await service.kill()
                self.killed.append(service.name)
                await asyncio.sleep(self.random.uniform(0.2, 1.5))
                await service.start()

    async def rolling_restart(self, until):
        """Every service of Weft once, spread over the time: told to end, waited for, started, waited for."""
        services = self.mesh.of_weft()
        for at, service in enumerate(services):
            pause = (until - time.monotonic()) / (len(services) - at + 1)
            await asyncio.sleep(max(pause, 0))
            async with service.busy:
                self.say(f"restart {service.name}")
                await service.terminate()
                self.restarted.append(service.name)
                await service.start()
                await service.until_ready()
