package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"sync/atomic"
	"syscall"

	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"

	"vhdfs/fs"
	"vhdfs/ops"
	"vhdfs/ops/host"
)

func mountCommand() *cli.Command {
	return &cli.Command{
		Name:      "mount",
		Usage:     "mount a folder of images, or one image",
		ArgsUsage: "IMAGES MNT",
		Category:  "mount",
		Description: "Every image below IMAGES becomes a directory under MNT. Stays in the foreground;\n" +
			"SIGTERM and SIGINT flush every image and unmount; a second one does not wait for that.",
		Flags: append(parentFlags(),
			&cli.BoolFlag{Name: "daemon", Aliases: []string{"d"}, Usage: "go to the background when the mount is ready"},
			&cli.BoolFlag{Name: "read-only", Aliases: []string{"r"}, Usage: "write nothing to any image"},
			&cli.BoolFlag{Name: "allow-other", Usage: "let other users read the mount"},
			&cli.StringFlag{Name: "cache", Value: "writeback", Usage: "the kernel's cache: `MODE` is writeback, writethrough or none"},
			&cli.StringFlag{Name: "cache-size", Value: "64M", Usage: "`SIZE` of the cache for block tables, for all images together"},
			&cli.StringFlag{Name: "truncate", Value: "refuse", Usage: "truncating raw to 0: `WHAT` is refuse or discard (discard all of it)"},
			&cli.StringFlag{Name: "log-level", Value: "info", Usage: "`LEVEL` is error, warning, info, debug or trace"},
			&cli.StringFlag{Name: "log-format", Value: "text", Usage: "`FORMAT` is text or json"},
			&cli.StringFlag{Name: "log-file", Usage: "append the log to `FILE`; default: standard error, with --daemon until the mount is ready"},
		),
		Action: func(c *cli.Context) error {
			args, err := positional(c, "IMAGES", "MNT")
			if err != nil {
				return err
			}
			if c.Bool("daemon") && !isDaemon() {
				return background(c.App.ErrWriter)
			}
			return mountAndServe(c, args[0], args[1])
		},
	}
}

// mountAndServe returns when the mount has gone and every image is closed.
func mountAndServe(c *cli.Context, images, mnt string) error {
	log, err := newLog(c)
	if err != nil {
		return err
	}
	o, cache, err := mountOptions(c, log)
	if err != nil {
		return err
	}
	folder, name, err := place(images)
	if err != nil {
		return err
	}
	if o.MountPoint, err = filepath.Abs(mnt); err != nil {
		return err
	}
	o.Panics = new(atomic.Int64)
	f, err := openFolders(c, folder, cache, func(where string, value any, stack []byte) {
		o.Panics.Add(1)
		log.WithField("stack", string(stack)).Errorf("%s: broken invariant: %v; the image answers EIO until it is opened again", where, value)
	})
	if err != nil {
		return err
	}
	o.Library, o.Single, o.Source, o.OnMounted = f.lib, name, filepath.Join(folder, name), f.refuse
	leash, err := takeLeash()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	err = serve(c.Context, o, leash)
	if leash != nil {
		_ = os.Remove(o.MountPoint) // made for this mount; one that is left is empty
	}
	if errors.Is(err, errForced) {
		return err // the process's end closes what is open, as a crash would
	}
	return errors.Join(err, f.Close())
}

func mountOptions(c *cli.Context, log *logrus.Logger) (o fs.Options, cache int64, err error) {
	o = fs.Options{Ops: ops.All, Devices: host.LoopCaches{}, Loops: host.Loops{}, ReadOnly: c.Bool("read-only"), AllowOther: c.Bool("allow-other"), Log: log}
	if o.Cache, err = fs.ParseCacheMode(c.String("cache")); err != nil {
		return o, 0, err
	}
	budget, err := ops.ParseSize("cache-size", c.String("cache-size"))
	if err != nil {
		return o, 0, err
	}
	if budget.Relative || budget.Bytes < 1<<20 {
		return o, 0, usagef("cache-size=%q: want at least 1M", c.String("cache-size"))
	}
	switch t := c.String("truncate"); t {
	case "refuse":
	case "discard":
		o.Discard = true
	default:
		return o, 0, usagef("truncate=%q: want refuse or discard", t)
	}
	return o, budget.Bytes, nil
}

// serve mounts and waits for the end: an unmount from outside, signals, or, with a
// leash, what [follow] waits for.
func serve(ctx context.Context, o fs.Options, leash *os.File) error {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(signals)
	signal.Ignore(syscall.SIGPIPE) // who reads the log may go; the disks stay

	var mounted atomic.Pointer[fs.Server]
	o.Image = imageDocuments(o.Library, &mounted)
	o.Service = serviceDocuments(o.Library, o.Source)
	server, err := fs.Mount(ctx, o)
	if err != nil {
		return err
	}
	mounted.Store(server)
	o.Log.WithFields(logrus.Fields{"images": o.Source, "mount": o.MountPoint}).Info("mounted")
	if err := tellReady(); err != nil {
		return errors.Join(err, server.Shutdown())
	}
	gone := make(chan struct{})
	go func() {
		server.Wait()
		close(gone)
	}()
	if leash != nil {
		go follow(server, leash, gone)
	}
	err = waitForEnd(server, o.Log, signals, gone)
	o.Log.Info("unmounted")
	return err
}

// waitForEnd returns when the mount has gone: unmounted from outside, by a request to
// stop the service, or by the first signal, whoever uses it. What programs wrote is
// durable by then; those that still hold files of the mount get errors.
func waitForEnd(server *fs.Server, log *logrus.Logger, signals <-chan os.Signal, gone <-chan struct{}) error {
	why := ""
	select {
	case <-gone:
	case <-server.Stopped():
		why = "request to stop"
	case s := <-signals:
		if err := server.DetachDevices(false); err != nil {
			log.WithError(err).WithField("signal", s.String()).Warn("a device is in use, and the service goes on; another signal ends it all the same")
			return waitForForce(server, log, signals, gone)
		}
		why = s.String()
	}
	if err := notify("STOPPING=1"); err != nil {
		log.WithError(err).Warn("service manager not told")
	}
	if why == "" {
		return nil
	}
	log.WithField("reason", why).Info("unmounting")
	return shutdown(server, signals)
}

// waitForForce is waitForEnd after a signal that found devices in use: the next
// signal ends the service whoever uses them.
func waitForForce(server *fs.Server, log *logrus.Logger, signals <-chan os.Signal, gone <-chan struct{}) error {
	select {
	case <-gone:
		return nil
	case <-server.Stopped():
	case s := <-signals:
		log.WithField("signal", s.String()).Warn("unmounting, with devices in use")
	}
	return shutdown(server, signals)
}

// errForced is the end that somebody asked for who would not wait for a flush.
var errForced = errors.New("a second signal ended the mount before every image was flushed")

// ending is how an [fs.Server] ends: in order, or at once.
type ending interface {
	Shutdown() error
	Detach() error
}

// shutdown ends the service in order, unless a second signal comes before that is
// done: a flush to a host that does not answer may take for ever.
func shutdown(server ending, signals <-chan os.Signal) error {
	done := make(chan error, 1)
	go func() { done <- server.Shutdown() }()
	select {
	case err := <-done:
		return err
	case <-signals:
		return errors.Join(errForced, server.Detach())
	}
}

func newLog(c *cli.Context) (*logrus.Logger, error) {
	log := logrus.New()
	log.SetOutput(c.App.ErrWriter)
	level, err := logrus.ParseLevel(c.String("log-level"))
	if err != nil {
		return nil, usagef("log-level=%q: want error, warning, info, debug or trace", c.String("log-level"))
	}
	log.SetLevel(level)
	switch f := c.String("log-format"); f {
	case "text":
		log.SetFormatter(&logrus.TextFormatter{FullTimestamp: true})
	case "json":
		log.SetFormatter(&logrus.JSONFormatter{})
	default:
		return nil, usagef("log-format=%q: want text or json", f)
	}
	if name := c.String("log-file"); name != "" {
		out, err := appendTo(name)
		if err != nil {
			return nil, err
		}
		log.SetOutput(out)
	}
	return log, nil
}

// appendTo opens a log. It stays open until the process ends.
func appendTo(name string) (io.Writer, error) {
	f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, fmt.Errorf("log file: %w", err)
	}
	return f, nil
}
