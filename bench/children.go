package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/handler"
)

// roleEnv tells a copy of this program to be a part of a case instead: its role, and what that
// needs, by line. It ends when its input does.
const roleEnv = "DELIVERY_BENCH_ROLE"

func play(role []string) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	switch role[0] {
	case "receiver":
		return receive(ctx)
	case "worker":
		return work(ctx, role[1], role[2])
	}
	return fmt.Errorf("there is no role %q", role[0])
}

// receive answers 200 to all requests, once it has printed its address.
func receive(ctx context.Context) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
	})}
	fmt.Println("http://" + l.Addr().String())
	go func() {
		<-ctx.Done()
		_ = s.Close()
	}()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// work runs a service that prints the topic of each item that it is given, and when.
func work(ctx context.Context, driver, url string) error {
	db, err := (&env{url: url}).open(driver)
	if err != nil {
		return err
	}
	svc, err := delivery.New(db, delivery.WithLogger(quiet),
		delivery.WithHandler("none", handler.Func(func(_ context.Context, r *handler.Request, _ none) (*handler.Result, error) {
			_, err := fmt.Println(r.Topic, time.Now().UnixNano())
			return nil, err
		})))
	if err != nil {
		return err
	}
	fmt.Println("ready")
	return errors.Join(svc.Run(ctx), svc.Close(), db.Close())
}

// child is a copy of this program.
type child struct {
	cmd *exec.Cmd
	in  io.Closer
	out *bufio.Scanner
}

func start(ctx context.Context, role ...string) (*child, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, program)
	cmd.Env = append(os.Environ(), roleEnv+"="+strings.Join(role, "\n"))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	return &child{cmd, in, bufio.NewScanner(out)}, cmd.Start()
}

// line is the next that it prints.
func (c *child) line() (string, error) {
	if !c.out.Scan() {
		return "", errors.Join(c.out.Err(), fmt.Errorf("the %s ended", c.cmd.Path))
	}
	return c.out.Text(), nil
}

func (c *child) stop() error { return errors.Join(c.in.Close(), c.cmd.Wait()) }
