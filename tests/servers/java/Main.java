import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.ByteBuffer;
import java.nio.channels.Channels;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;

/** `hello PID` on the listening socket at descriptor 0; /slow takes 0.6 seconds; SIGTERM drains. */
public class Main {
    public static void main(String[] args) throws Exception {
        if (!(System.inheritedChannel() instanceof ServerSocketChannel listener)) {
            System.err.println("descriptor 0 is no listening socket");
            System.exit(1);
            return;
        }
        ExecutorService pool = Executors.newFixedThreadPool(4);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            try {
                listener.close();
                pool.shutdown();
                pool.awaitTermination(10, TimeUnit.SECONDS);
            } catch (Exception e) {
                // the process ends anyway
            }
        }));
        while (true) {
            SocketChannel client = listener.accept();
            pool.execute(() -> answer(client));
        }
    }

    static void answer(SocketChannel client) {
        try (client) {
            BufferedReader request = new BufferedReader(new InputStreamReader(Channels.newInputStream(client)));
            String first = request.readLine();
            for (String line = first; line != null && !line.isEmpty(); ) line = request.readLine();
            if (first != null && first.contains(" /slow ")) Thread.sleep(600);
            String body = "hello " + ProcessHandle.current().pid() + "\n";
            client.write(ByteBuffer.wrap(("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: "
                    + body.length() + "\r\n\r\n" + body).getBytes()));
        } catch (Exception e) {
            // the client's loss
        }
    }
}
