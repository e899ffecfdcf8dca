# SPDX-License-Identifier: Apache-2.0
"""A small guest on a private libvirt: up in two or three seconds, driven over a serial line."""

from __future__ import annotations

import contextlib
import copy
import shutil
import socket
import uuid
from collections.abc import Mapping
from pathlib import Path

import libvirt

from bed import initramfs
from bed.domain_xml import Files, Hardware, channel_socket, domain_xml
from bed.inside import BOOT_S, PATIENCE, Inside
from bed.jobs import Jobs
from bed.libvirtd import PrivateLibvirtd
from bed.packages import Artefacts, BedError

SETTLE_S = 30.0


class VM(Inside):
    """One guest; a context manager that boots it and, at the end, destroys it."""

    def __init__(
        self,
        host: PrivateLibvirtd,
        artefacts: Artefacts,
        name: str,
        *,
        channel: bool = True,
        controller: bool = True,
        memory_mib: int = 256,
        main: str | None = None,
        files: Mapping[str, bytes | Path] | None = None,
        rngd: str | None = "rng-tools5",
        metadata: str = "",
        devices: str = "",
        kernel_args: str = "",
        cpu: str = "<cpu mode='maximum'/>",
        kvm: bool = False,
        genid: bool = False,
        persistent: bool = True,
    ) -> None:
        """Describes a guest; `start` boots it.

        channel     with org.netrng.0; `controller`: with a virtio-serial controller though without a channel
        main        a shell script that the guest runs once at boot; its output is /run/main.out, its exit
                    code, once it ended, /run/main.rc
        files       path in the guest → content, or the file here that has it; executable
        rngd        which variant is /usr/sbin/rngd in the guest ("rng-tools5", "rng-tools-debian"), or None
        metadata    XML inside <metadata>; `devices`: XML inside <devices>
        kernel_args appended to the kernel's command line
        genid       with a VM generation ID
        """
        if rngd is not None and rngd not in artefacts.rngd:
            raise BedError(f"there is no {rngd}: choose {' or '.join(artefacts.rngd)}")
        super().__init__(name)
        self.host = host
        self.uuid = str(uuid.uuid4())
        self._artefacts = artefacts
        self._persistent = persistent
        self._files = dict(files or {})
        self._main = main
        self._rngd = rngd
        self._boot = host.run.boot
        self.xml = domain_xml(
            name,
            self.uuid,
            Hardware(channel, controller, memory_mib, metadata, devices, kernel_args, cpu, kvm, genid),
            Files(self._boot / artefacts.kernel.name, self._image, self.console, self._line_on(host)),
        )

    # Life

    def start(self, wait: bool = True) -> VM:
        """Boots it, by default until it answers."""
        self._write_files()
        connection = self.host.connection()
        if self._persistent:
            connection.defineXML(self.xml).create()
        else:
            connection.createXML(self.xml)
        if wait:
            self.wait_up()
        return self

    @property
    def domain(self) -> libvirt.virDomain:
        """libvirt's handle; valid until its libvirtd restarts.  Raises libvirtError when there is none."""
        return self.host.connection().lookupByUUIDString(self.uuid)

    def boot_again(self) -> None:
        """Starts a persistent guest that was destroyed or powered off."""
        self.domain.create()
        self.wait_up()

    def destroy(self) -> None:
        """Pulls the plug; a persistent definition stays."""
        self.domain.destroy()

    def suspend(self) -> None:
        """Stops its CPU."""
        self.domain.suspend()

    def resume(self) -> None:
        """Goes on after `suspend`."""
        self.domain.resume()

    def reset(self) -> None:
        """Resets the machine, as its button does, and waits until it is up again."""
        before = self.boot_id()
        self.domain.reset()
        self.wait_for(lambda: self.boot_id() != before, BOOT_S, "the guest to boot again")

    def boot_id(self) -> str:
        """Names this boot of the guest's kernel."""
        return self.run("cat /proc/sys/kernel/random/boot_id", BOOT_S).out.strip()

    def save(self, path: Path) -> None:
        """Saves memory and state to `path` (in a folder of the run's unprivileged user) and stops it."""
        self._settle_line()
        self.domain.save(str(path))

    def restore(self, path: Path, host: PrivateLibvirtd | None = None) -> None:
        """Goes on from a saved state, on `host` if given; as often as one likes from the same file."""
        target = host or self.host
        connection = target.connection()
        saved = connection.saveImageGetXMLDesc(str(path), libvirt.VIR_DOMAIN_XML_SECURE)
        connection.restoreFlags(str(path), self._moved(saved, target), 0)
        self._move_to(target)

    def restore_twin(self, path: Path, host: PrivateLibvirtd) -> VM:
        """A second guest from the same saved state, with the same UUID, on another libvirtd: a clone."""
        twin = copy.copy(self)
        twin.jobs = Jobs(twin.line)
        twin.restore(path, host)
        return twin

    def migrate(self, target: PrivateLibvirtd) -> None:
        """Migrates it live to `target`; this object then stands for the guest there."""
        self._settle_line()
        source = self.domain
        migratable = source.XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE)
        parameters = {
            libvirt.VIR_MIGRATE_PARAM_DEST_XML: self._moved(migratable, target),
            # By default libvirt would look up the machine's name in the DNS.
            libvirt.VIR_MIGRATE_PARAM_URI: f"tcp://127.0.0.1:{_free_port()}",
            libvirt.VIR_MIGRATE_PARAM_LISTEN_ADDRESS: "127.0.0.1",
        }
        flags = libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
        if self._persistent:
            parameters[libvirt.VIR_MIGRATE_PARAM_PERSIST_XML] = self._moved(
                source.XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE | libvirt.VIR_DOMAIN_XML_INACTIVE), target
            )
            flags |= libvirt.VIR_MIGRATE_PERSIST_DEST
        source.migrate3(target.connection(), parameters, flags)
        self._move_to(target)

    def close(self) -> None:
        """Destroys and forgets it; harmless when it is gone already."""
        self.jobs.close()
        for step in (libvirt.virDomain.destroy, libvirt.virDomain.undefine):
            with contextlib.suppress(libvirt.libvirtError):
                step(self.domain)
        self._image.unlink(missing_ok=True)

    # What can be seen of it from the host

    def line(self) -> Path | None:
        path = self._line_on(self.host)
        return path if path.exists() else None

    @property
    def console(self) -> Path:
        return self._console_on(self.host)

    def channel_socket(self) -> Path | None:
        """The socket of org.netrng.0 on the host, from the live XML; None without one."""
        return channel_socket(self.domain.XMLDesc())

    def _console_on(self, host: PrivateLibvirtd) -> Path:
        return host.folder / f"{self.name}.console"

    def _line_on(self, host: PrivateLibvirtd) -> Path:
        return host.folder / f"{self.name}.jobs"

    def _settle_line(self) -> None:
        """Waits until the guest sends no answer, not even one for the second time because it was slow.

        QEMU 7.2 can lose the serial port's interrupt when the machine moves while it sends; Linux then waits
        for it for ever, and so would every later job.
        """
        if self.domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING:
            script = "while ps | grep -q '[b]ed/answer'; do sleep 0.05; done"
            self.jobs.answer(self.jobs.submit(script), script, PATIENCE * SETTLE_S, repeat=False)

    def _moved(self, xml: str, target: PrivateLibvirtd) -> str:
        """The domain's XML with its console and job line in `target`'s folder."""
        for on in (self._console_on, self._line_on):
            xml = xml.replace(f"'{on(self.host)}'", f"'{on(target)}'")
        return xml

    def _move_to(self, target: PrivateLibvirtd) -> None:
        self.host = target
        self.jobs.close()

    @property
    def _image(self) -> Path:
        return self._boot / f"{self.name}.cpio"

    def _write_files(self) -> None:
        kernel = self._boot / self._artefacts.kernel.name
        if not kernel.exists():
            shutil.copyfile(self._artefacts.kernel, kernel)
        files = {"bed/name": self.name.encode(), **self._files}
        if self._main is not None:
            files["bed/main"] = self._main.encode()
        links = {} if self._rngd is None else {"usr/sbin/rngd": f"/opt/{self._rngd}/usr/sbin/rngd"}
        initramfs.extend(self._artefacts.initramfs, self._image, files, links)
        self.console.unlink(missing_ok=True)

    def __enter__(self) -> VM:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()


def _free_port() -> int:
    """A TCP port that nobody uses; two libvirtds that choose for themselves take the same one at one time."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
