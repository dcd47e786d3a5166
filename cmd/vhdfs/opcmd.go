package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os/signal"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"vhdfs/ops"
)

// opCommand is the subcommand of an operation.
func opCommand(op *ops.Op) *cli.Command {
	image, open := "IMAGE", openTarget
	if op.Service { // what comes first is the file that it makes
		image, open = "NEW", openFolderOf
	}
	return &cli.Command{
		Name:        op.Name,
		Usage:       op.Brief,
		ArgsUsage:   image + " " + op.Synopsis(),
		Description: op.Usage(),
		Category:    "operations",
		Flags:       append(parentFlags(), jsonFlag()),
		Action: func(c *cli.Context) error {
			if c.NArg() == 0 {
				return usagef("%s is missing: vhdfs %s %s", image, op.Name, c.Command.ArgsUsage)
			}
			ctx, stop := signal.NotifyContext(c.Context, syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			first, words := c.Args().First(), c.Args().Tail()
			if op.Service {
				first = strings.TrimPrefix(first, "path=")
				words = append([]string{"path=" + first}, words...)
			}
			t, err := open(c, first)
			if err != nil {
				return err
			}
			answer, err := t.do(ctx, op, words)
			if err := errors.Join(err, t.Close()); err != nil {
				return err
			}
			return printAnswer(c, op, answer)
		},
		BashComplete: func(c *cli.Context) {
			for _, a := range op.Args {
				fmt.Fprintln(c.App.Writer, a.Key()+"=")
			}
		},
	}
}

// printAnswer tells an answer, its failure on standard error.
func printAnswer(c *cli.Context, op *ops.Op, answer []byte) error {
	var head struct{ Error, Errno string }
	if err := json.Unmarshal(answer, &head); err != nil {
		return fmt.Errorf("answer of %s: %w", op.Name, err)
	}
	if c.Bool("json") {
		var b bytes.Buffer
		if err := json.Indent(&b, answer, "", "  "); err != nil {
			return err
		}
		fmt.Fprintln(c.App.Writer, b.String())
	} else if err := answerText(c.App.Writer, op.Name, answer); err != nil {
		return err
	}
	if head.Errno == "" {
		return nil
	}
	fmt.Fprintln(c.App.ErrWriter, "vhdfs: "+head.Error)
	return reported{exitOf(head.Errno)}
}
