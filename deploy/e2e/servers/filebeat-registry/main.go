// Writes a registry as Filebeat 7.9 and later do, with Filebeat's own store (libbeat/statestore/backend/memlog).
// Arguments: the registry's folder, then PATH OFFSET ROUNDS for each file: a state of the `log` input, or of
// `filestream` where OFFSET begins with `+`, written ROUNDS times with growing offsets, so that the store's log is
// checkpointed on the way.
package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/elastic/beats/v7/libbeat/logp"
	"github.com/elastic/beats/v7/libbeat/statestore/backend/memlog"
)

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	registry, err := memlog.New(logp.NewLogger("registry"), memlog.Settings{
		Root: os.Args[1], FileMode: 0o600,
		// Its log is folded into a checkpoint often enough to see that.
		Checkpoint: func(size uint64) bool { return size > 4096 },
	})
	must(err)
	store, err := registry.Access("filebeat")
	must(err)
	for n := 2; n+2 < len(os.Args); n += 3 {
		path := os.Args[n]
		filestream := strings.HasPrefix(os.Args[n+1], "+")
		offset, err := strconv.ParseInt(strings.TrimPrefix(os.Args[n+1], "+"), 10, 64)
		must(err)
		rounds, err := strconv.ParseInt(os.Args[n+2], 10, 64)
		must(err)
		stat, err := os.Stat(path)
		must(err)
		system := stat.Sys().(*syscall.Stat_t)
		native := fmt.Sprintf("%d-%d", system.Ino, system.Dev)
		for round := int64(1); round <= rounds; round++ {
			at := offset * round / rounds
			if filestream {
				must(store.Set("filestream::app::native::"+native, map[string]any{
					"ttl": -1, "updated": time.Now(),
					"cursor": map[string]any{"offset": at},
					"meta":   map[string]any{"source": path, "identifier_name": "native"},
				}))
				continue
			}
			must(store.Set("filebeat::logs::native::"+native, map[string]any{
				"id": "native::" + native, "prev_id": "", "source": path, "offset": at, "ttl": -1, "type": "log",
				"timestamp": time.Now(), "identifier_name": "native",
				"FileStateOS": map[string]any{"inode": system.Ino, "device": system.Dev},
			}))
		}
	}
	must(store.Close())
	must(registry.Close())
}
